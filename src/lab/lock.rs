//! One command at a time changes a lab; one at a time chooses addresses or builds a root file system.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::LabError;

/// A held lock file; free again when dropped, or when this process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock.
    pub fn take(path: &Path) -> Result<Self, LabError> {
        let failed = || LabError::file("lock", path);
        loop {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(LabError::file("create", parent))?;
            }
            let file = match File::options().create(true).truncate(false).write(true).open(path) {
                Ok(file) => file,
                // The last lab's end removed the directory just now.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed()(error)),
            };
            file.lock().map_err(failed())?;
            // Who held it may have removed the file meanwhile: then this is a lock nobody else will ever see.
            let ours = file.metadata().map_err(failed())?.ino();
            if fs::metadata(path).is_ok_and(|there| there.ino() == ours) {
                return Ok(Self { file, path: path.to_owned() });
            }
        }
    }

    /// Frees the lock and leaves no file.
    pub fn remove(self) {
        _ = fs::remove_file(&self.path);
        drop(self.file);
    }
}
