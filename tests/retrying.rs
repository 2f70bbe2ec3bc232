//! Work of a request that is begun anew after a conflict.

mod anew;
mod before;
mod beside;
mod known;
mod skew;
