//! The CPU time of processes. Unlike the wall time, it hardly depends on other load on the machine.

/// Returns the CPU time of a process so far, in microseconds. Threads that have ended are not
/// counted. Only Linux counts it; elsewhere this returns 0.
pub fn of(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads.map(|thread| of_thread(&thread.path())).sum()
}

fn of_thread(thread: &std::path::Path) -> f64 {
    let text = std::fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    let nanoseconds = text.split_whitespace().next();
    nanoseconds.map_or(0.0, |word| word.parse::<f64>().unwrap() / 1_000.0)
}
