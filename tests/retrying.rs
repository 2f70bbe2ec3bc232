//! Work of a request that is begun anew after a conflict.

mod anew;
mod skew;
