//! The OpenMP threads that the process already has.
//!
//! PyTorch's CPU operators run on a team of GNU OpenMP, whose workers go on spinning for
//! milliseconds after each operator, in the hope of the next. A second pool would compete
//! with them for the same cores; the kernels therefore run on the very same team, by the
//! entry that compilers emit for `#pragma omp parallel`. The library is never loaded by
//! us, only looked up where it is already mapped.

#![expect(unsafe_code, reason = "calls into a C library that was found at run time")]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use super::parallel::{Job, Parallel};

/// Part of libgomp's stable interface, which LLVM's and Intel's libraries offer as well.
type GompParallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);
type GetMaxThreads = unsafe extern "C" fn() -> c_int;

/// Names of libraries that have the entry, as parts of file names.
const LIBRARIES: [&str; 3] = ["libgomp", "libomp", "libiomp"];

/// The team of the OpenMP library in this process.
///
/// As many threads as an operator of PyTorch gets (`torch.set_num_threads`), on the thread
/// that asks. In a forked child, where GNU OpenMP would wait for workers that do not
/// exist, `run` works on the calling thread alone.
#[derive(Clone, Copy, Debug)]
pub struct OpenMp {
    parallel: GompParallel,
    max_threads: GetMaxThreads,
    process: u32,
}

impl OpenMp {
    /// The library that this process has mapped, PyTorch's own first; `None` without one.
    pub fn find() -> Option<Self> {
        let mut paths = mapped_libraries(&std::fs::read_to_string("/proc/self/maps").ok()?);
        paths.sort_by_key(|path| !path.contains("torch"));
        paths.iter().find_map(|path| Self::at(path))
    }

    /// The library at `path`, if it is loaded and has what is needed.
    fn at(path: &str) -> Option<Self> {
        let path = CString::new(path).ok()?;
        // SAFETY: the path is a C string. NOLOAD runs no initialiser; the handle is kept
        // for ever, so what is looked up in it stays.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if handle.is_null() {
            return None;
        }
        let parallel = symbol(handle, c"GOMP_parallel")?;
        let max_threads = symbol(handle, c"omp_get_max_threads")?;
        Some(Self {
            // SAFETY: these symbols have had these signatures since GCC 4.9.
            parallel: unsafe { std::mem::transmute::<*mut c_void, GompParallel>(parallel) },
            // SAFETY: as above.
            max_threads: unsafe { std::mem::transmute::<*mut c_void, GetMaxThreads>(max_threads) },
            process: std::process::id(),
        })
    }
}

fn symbol(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    let name: *const c_char = name.as_ptr();
    // SAFETY: the handle came from dlopen and was not closed; the name is a C string.
    let address = unsafe { libc::dlsym(handle, name) };
    (!address.is_null()).then_some(address)
}

/// Paths of OpenMP libraries among the mappings of a process.
fn mapped_libraries(maps: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for line in maps.lines() {
        // Address, permissions, offset, device and inode come first; a path may have blanks.
        let Some(start) = line.find('/') else { continue };
        let path = &line[start..];
        let file = path.rsplit('/').next().unwrap_or_default();
        if LIBRARIES.iter().any(|library| file.starts_with(library)) && !paths.iter().any(|p| p == path) {
            paths.push(path.to_owned());
        }
    }
    paths
}

extern "C" fn enter(job: *mut c_void) {
    // SAFETY: `run` passes its job, which outlives the parallel region. No panic leaves
    // `work`, so none crosses the C frames.
    unsafe { (*job.cast_const().cast::<Job<'_>>()).work() };
}

impl Parallel for OpenMp {
    fn threads(&self) -> usize {
        // SAFETY: a function without preconditions.
        let threads = unsafe { (self.max_threads)() };
        usize::try_from(threads).unwrap_or(1).max(1)
    }

    fn run(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        let threads = self.threads();
        if n <= 1 || threads == 1 || self.process != std::process::id() {
            return (0..n).for_each(f);
        }
        let job = Job::new(n, f);
        // All threads that PyTorch uses, even if fewer have work: a team of another size
        // would be torn down and built again. A nested region gets a team of one.
        // SAFETY: `enter` takes the job by this pointer, from any thread (a `Job` is shared
        // by design), and the region ends before the call returns.
        unsafe { (self.parallel)(enter, (&raw const job).cast_mut().cast(), threads as c_uint, 0) };
        job.finish();
    }

    fn name(&self) -> &'static str {
        "OpenMP"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_libraries_among_mappings() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 42   /usr/lib/libc.so.6\n\
                    7f02-7f03 r--p 00000000 08:01 43   /a b/torch.libs/libgomp-98b2.so.1.0.0\n\
                    7f03-7f04 r-xp 00001000 08:01 43   /a b/torch.libs/libgomp-98b2.so.1.0.0\n\
                    7f05-7f06 rw-p 00000000 00:00 0    [heap]\n";
        assert_eq!(mapped_libraries(maps), ["/a b/torch.libs/libgomp-98b2.so.1.0.0"]);
    }

    #[test]
    fn finds_the_library_once_it_is_loaded() {
        // SAFETY: loading the system's OpenMP library, where there is one, is harmless.
        if unsafe { libc::dlopen(c"libgomp.so.1".as_ptr(), libc::RTLD_NOW) }.is_null() {
            return;
        }
        let parallel = OpenMp::find().expect("it is loaded");
        super::super::parallel_tests::check(&parallel);
    }
}
