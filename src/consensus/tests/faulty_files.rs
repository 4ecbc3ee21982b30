//! Files that fail under SQLite: its usual way to files with a stage in between, which counts every access to the files
//! of a folder under watch and fails the chosen one. Other folders see nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, OsStr, c_char, c_int, c_void},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak},
};

use rusqlite::ffi::{
    self, SQLITE_FULL, SQLITE_IOERR_FSYNC, SQLITE_IOERR_READ, SQLITE_IOERR_SHMMAP, SQLITE_IOERR_SHMSIZE,
    SQLITE_IOERR_TRUNCATE, SQLITE_IOERR_WRITE, SQLITE_OK, sqlite3_file, sqlite3_io_methods, sqlite3_vfs,
};

use super::faulty_disk::{Change, Unflushed, make};

/// Kinds of access that may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    Read,
    Write,
    Flush,
    Truncate,
    /// Sharing the index of SQLite's log between connections.
    Map,
    /// The same by a connection that may make the index longer.
    Grow,
}

/// What happens at the chosen access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails, and only it.
    Once,
    /// It fails, and so does every later access of any kind.
    Broken,
    /// It fails for want of room, and so do all that write, until there is some again.
    Full,
    /// Half of the write is done, and nothing after it.
    PowerCut,
}

/// A file whose writes are followed.
#[derive(Default)]
struct Followed {
    /// What is on the disk for good.
    flushed: Vec<u8>,
    waiting: Vec<Change>,
}

#[derive(Default)]
struct Inner {
    counts: BTreeMap<Access, usize>,
    /// Which files were reached how.
    reached: BTreeSet<(Access, String)>,
    fault: Option<(Access, usize, Fault)>,
    /// What failed first.
    fired: Option<(Access, String)>,
    dead: bool,
    /// The database and its log.
    followed: BTreeMap<PathBuf, Followed>,
}

/// A folder under watch, until it is dropped.
pub(super) struct Watch {
    folder: PathBuf,
    inner: Mutex<Inner>,
}

static WATCHES: Mutex<Vec<Weak<Watch>>> = Mutex::new(Vec::new());

impl Watch {
    /// Watches what SQLite opens below a folder from now on.
    pub(super) fn over(folder: &Path) -> Arc<Self> {
        install();
        let watch = Arc::new(Self { folder: folder.canonicalize().unwrap(), inner: Mutex::default() });
        let mut watches = WATCHES.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        watch
    }

    fn of(path: &Path) -> Option<Arc<Self>> {
        let watches = WATCHES.lock().unwrap_or_else(PoisonError::into_inner);
        watches.iter().filter_map(Weak::upgrade).find(|watch| path.starts_with(&watch.folder))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the `at`th access of a kind fail, counted from here.
    pub(super) fn fails(&self, access: Access, at: usize, fault: Fault) {
        let mut inner = self.inner();
        inner.counts.clear();
        inner.fault = Some((access, at, fault));
    }

    /// There is room again.
    pub(super) fn free(&self) {
        self.inner().fault = None;
    }

    pub(super) fn counts(&self) -> BTreeMap<Access, usize> {
        self.inner().counts.clone()
    }

    pub(super) fn reached(&self) -> BTreeSet<(Access, String)> {
        self.inner().reached.clone()
    }

    /// What failed first, if anything did.
    pub(super) fn fired(&self) -> Option<(Access, String)> {
        self.inner().fired.clone()
    }

    /// Writes into a folder what a power cut leaves of the database and its log.
    pub(super) fn leave(&self, folder: &Path, unflushed: Unflushed) {
        for (path, followed) in &self.inner().followed {
            let mut bytes = followed.flushed.clone();
            unflushed.keep(&followed.waiting).into_iter().for_each(|change| make(&mut bytes, change));
            std::fs::write(folder.join(path.file_name().unwrap()), bytes).unwrap();
        }
    }

    /// Counts an access; gives what is to happen instead of it.
    fn step(&self, access: Access, path: &Path) -> Option<Fault> {
        let mut inner = self.inner();
        let name = path.strip_prefix(&self.folder).unwrap().display().to_string();
        inner.reached.insert((access, name.clone()));
        if inner.dead {
            return Some(Fault::Broken);
        }
        let count = inner.counts.entry(access).or_default();
        *count += 1;
        let count = *count;
        let (chosen, at, fault) = inner.fault?;
        let happens = match fault {
            Fault::Once => access == chosen && count == at,
            Fault::Broken | Fault::PowerCut => access == chosen && count >= at,
            Fault::Full if inner.fired.is_some() => matches!(access, Access::Write | Access::Grow),
            Fault::Full => access == chosen && count >= at,
        };
        if !happens {
            return None;
        }
        inner.fired.get_or_insert((access, name));
        inner.dead = matches!(fault, Fault::Broken | Fault::PowerCut);
        Some(fault)
    }

    fn follow(&self, path: &Path) {
        let name = path.strip_prefix(&self.folder).unwrap();
        if ["state.sqlite", "state.sqlite-wal"].iter().any(|followed| name == Path::new(followed)) {
            let read = || Followed { flushed: std::fs::read(path).unwrap_or_default(), waiting: Vec::new() };
            self.inner().followed.entry(path.to_owned()).or_insert_with(read);
        }
    }

    fn changed(&self, path: &Path, change: Change) {
        if let Some(followed) = self.inner().followed.get_mut(path) {
            followed.waiting.push(change);
        }
    }

    fn flushed(&self, path: &Path) {
        if let Some(Followed { flushed, waiting }) = self.inner().followed.get_mut(path) {
            waiting.drain(..).for_each(|change| make(flushed, &change));
        }
    }

    fn deleted(&self, path: &Path) {
        self.inner().followed.remove(path);
    }
}

/// An open file of ours. What SQLite's own way keeps of it lies right behind it.
#[repr(C)]
struct Stage {
    methods: *const sqlite3_io_methods,
    watched: *mut Watched,
}

struct Watched {
    watch: Arc<Watch>,
    path: PathBuf,
}

/// SQLite's own way to files.
struct Real(*mut sqlite3_vfs);
// SAFETY: SQLite registers it once, never takes it away, and calls it from any thread itself.
unsafe impl Send for Real {}
unsafe impl Sync for Real {}
static REAL: std::sync::OnceLock<Real> = std::sync::OnceLock::new();

fn real() -> *mut sqlite3_vfs {
    REAL.get().expect("files are opened after it was installed").0
}

/// Puts the stage in the way of all connections that are opened from now on.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the default way is there once SQLite is initialised, which finding it does; ours is a copy of it that
        // lives as long as the process.
        unsafe {
            let found = ffi::sqlite3_vfs_find(ptr::null());
            assert!(!found.is_null());
            drop(REAL.set(Real(found)));
            let mut ours = ptr::read(found);
            ours.pNext = ptr::null_mut();
            ours.zName = c"toft-watched".as_ptr();
            ours.szOsFile += size_of::<Stage>() as c_int;
            ours.xOpen = Some(open);
            ours.xDelete = Some(delete);
            assert_eq!(ffi::sqlite3_vfs_register(Box::into_raw(Box::new(ours)), 1), SQLITE_OK);
        }
    });
}

unsafe fn path_of(name: *const c_char) -> Option<PathBuf> {
    // SAFETY: SQLite passes a null pointer (for a file without a name) or a C string.
    (!name.is_null()).then(|| Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())).to_owned())
}

// SAFETY, for all functions below: SQLite calls them with files that `open` has filled in, and never two of them at a time
// on the same file. The real file lies `size_of::<Stage>()` bytes behind ours: `szOsFile` has room for both.

unsafe fn inner(file: *mut sqlite3_file) -> *mut sqlite3_file {
    unsafe { file.byte_add(size_of::<Stage>()) }
}

unsafe fn methods<'a>(file: *mut sqlite3_file) -> &'a sqlite3_io_methods {
    unsafe { &*(*inner(file)).pMethods }
}

unsafe fn watched<'a>(file: *mut sqlite3_file) -> Option<&'a Watched> {
    unsafe { (*file.cast::<Stage>()).watched.as_ref() }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    unsafe {
        let stage = file.cast::<Stage>();
        (*stage).methods = ptr::null();
        (*stage).watched = ptr::null_mut();
        let code = ((*real()).xOpen.unwrap())(real(), name, inner(file), flags, out);
        if code != SQLITE_OK {
            return code;
        }
        (*stage).methods = &METHODS;
        if let Some(path) = path_of(name)
            && let Some(watch) = Watch::of(&path)
        {
            watch.follow(&path);
            (*stage).watched = Box::into_raw(Box::new(Watched { watch, path }));
        }
        code
    }
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, flush: c_int) -> c_int {
    unsafe {
        let code = ((*real()).xDelete.unwrap())(real(), name, flush);
        if let Some(path) = path_of(name)
            && let Some(watch) = Watch::of(&path)
            && code == SQLITE_OK
        {
            watch.deleted(&path);
        }
        code
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    unsafe {
        let code = (methods(file).xClose.unwrap())(inner(file));
        let stage = file.cast::<Stage>();
        if !(*stage).watched.is_null() {
            drop(Box::from_raw(std::mem::replace(&mut (*stage).watched, ptr::null_mut())));
        }
        code
    }
}

unsafe extern "C" fn read(file: *mut sqlite3_file, to: *mut c_void, length: c_int, at: i64) -> c_int {
    unsafe {
        if watched(file).is_some_and(|w| w.watch.step(Access::Read, &w.path).is_some()) {
            return SQLITE_IOERR_READ;
        }
        (methods(file).xRead.unwrap())(inner(file), to, length, at)
    }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, from: *const c_void, length: c_int, at: i64) -> c_int {
    unsafe {
        let real = methods(file).xWrite.unwrap();
        let Some(w) = watched(file) else { return real(inner(file), from, length, at) };
        let (length, failure) = match w.watch.step(Access::Write, &w.path) {
            None => (length, None),
            Some(Fault::Full) => (0, Some(SQLITE_FULL)),
            Some(Fault::PowerCut) => (length / 2, Some(SQLITE_IOERR_WRITE)),
            // Short by one byte in the one case, nothing in the other.
            Some(Fault::Once) => (length - 1, Some(SQLITE_IOERR_WRITE)),
            Some(Fault::Broken) => (0, Some(SQLITE_IOERR_WRITE)),
        };
        let code = if length > 0 { real(inner(file), from, length, at) } else { SQLITE_OK };
        if length > 0 && code == SQLITE_OK {
            let bytes = std::slice::from_raw_parts(from.cast::<u8>(), length as usize);
            w.watch.changed(&w.path, Change::Write(at as usize, bytes.to_vec()));
        }
        failure.unwrap_or(code)
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: i64) -> c_int {
    unsafe {
        let Some(w) = watched(file) else { return (methods(file).xTruncate.unwrap())(inner(file), length) };
        if w.watch.step(Access::Truncate, &w.path).is_some() {
            return SQLITE_IOERR_TRUNCATE;
        }
        let code = (methods(file).xTruncate.unwrap())(inner(file), length);
        if code == SQLITE_OK {
            w.watch.changed(&w.path, Change::Length(length as usize));
        }
        code
    }
}

unsafe extern "C" fn flush(file: *mut sqlite3_file, flags: c_int) -> c_int {
    unsafe {
        let Some(w) = watched(file) else { return (methods(file).xSync.unwrap())(inner(file), flags) };
        if w.watch.step(Access::Flush, &w.path).is_some() {
            return SQLITE_IOERR_FSYNC;
        }
        // Nothing cuts this machine's power: what is flushed is only noted.
        w.watch.flushed(&w.path);
        SQLITE_OK
    }
}

unsafe extern "C" fn map(
    file: *mut sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    unsafe {
        if let Some(w) = watched(file) {
            let mut path = w.path.clone().into_os_string();
            path.push("-shm");
            let access = if extend == 0 { Access::Map } else { Access::Grow };
            match w.watch.step(access, Path::new(&path)) {
                None => {}
                Some(Fault::Full) => return SQLITE_IOERR_SHMSIZE,
                Some(Fault::Once | Fault::Broken | Fault::PowerCut) => return SQLITE_IOERR_SHMMAP,
            }
        }
        (methods(file).xShmMap.unwrap())(inner(file), region, size, extend, out)
    }
}

/// Functions that only pass on.
macro_rules! pass {
    ($($name:ident = $method:ident($($argument:ident: $kind:ty),*);)*) => {
        $(unsafe extern "C" fn $name(file: *mut sqlite3_file, $($argument: $kind),*) -> c_int {
            unsafe { (methods(file).$method.unwrap())(inner(file), $($argument),*) }
        })*
    };
}

pass! {
    file_size = xFileSize(out: *mut i64);
    lock = xLock(level: c_int);
    unlock = xUnlock(level: c_int);
    check_reserved_lock = xCheckReservedLock(out: *mut c_int);
    file_control = xFileControl(what: c_int, argument: *mut c_void);
    sector_size = xSectorSize();
    device_characteristics = xDeviceCharacteristics();
    shared_lock = xShmLock(offset: c_int, count: c_int, flags: c_int);
    unmap = xShmUnmap(delete: c_int);
}

unsafe extern "C" fn barrier(file: *mut sqlite3_file) {
    unsafe { (methods(file).xShmBarrier.unwrap())(inner(file)) }
}

/// Version 2: without reading through a map of the file, which nobody could fail.
static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(flush),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(map),
    xShmLock: Some(shared_lock),
    xShmBarrier: Some(barrier),
    xShmUnmap: Some(unmap),
    xFetch: None,
    xUnfetch: None,
};
