//! What the differential tests ask of others by unsafe code: the kernel and libseccomp.

pub(crate) mod kernel;
pub(crate) mod libseccomp;
