//! Platforms of images and how well one fits the machine.

use std::fmt;

use super::{RawPlatform, shown};

/// An operating system, an architecture and its variant, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// The operating system, e.g. `linux`.
    pub os: String,
    /// The architecture, e.g. `amd64`.
    pub architecture: String,
    /// The variant, e.g. `v8`; `None` means the architecture's base variant.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform this program was built for, at the variant of this processor.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, processor_variant())
    }

    /// Makes a platform; common aliases of architectures are replaced by Go's names.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "x86" | "i386" | "i686" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.filter(|v| !v.is_empty()).map(str::to_owned),
        }
    }

    /// Returns how far an image for `other` is from this machine: 0 is exact, more is an older
    /// variant, then come those of the 32-bit architecture below; `None` cannot run.
    #[must_use]
    pub fn distance(&self, other: &Self) -> Option<u32> {
        let own = self.distance_within(other);
        own.or_else(|| Some(self.below()?.distance_within(other)? + BELOW))
    }

    /// Returns the 32-bit platform that processors of this one run as well.
    fn below(&self) -> Option<Self> {
        match self.architecture.as_str() {
            "amd64" => Some(Self::new(&self.os, "386", None)),
            "arm64" => Some(Self::new(&self.os, "arm", Some("v8"))),
            _ => None,
        }
    }

    fn distance_within(&self, other: &Self) -> Option<u32> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        if self.variant() == other.variant() {
            return Some(0);
        }
        level(self.variant())?.checked_sub(level(other.variant())?)
    }

    /// Tells whether a config that states `other` may run here. Empty fields state nothing.
    #[must_use]
    pub fn accepts_config(&self, other: &Self) -> bool {
        let os = other.os.is_empty() || other.os == self.os;
        let below = self.below();
        let mut runs = [Some(self), below.as_ref()].into_iter().flatten();
        os && (other.architecture.is_empty()
            || runs.any(|platform| platform.architecture == other.architecture))
    }

    fn variant(&self) -> &str {
        match (self.variant.as_deref(), self.architecture.as_str()) {
            (Some(variant), _) => variant,
            (None, "amd64") => "v1",
            (None, "arm64") => "v8",
            (None, "arm") => "v7",
            (None, _) => "",
        }
    }
}

/// Distance of the 32-bit architecture, above that of every variant.
const BELOW: u32 = 1 << 20;

/// Returns which of the x86-64 psABI's levels this processor has.
#[cfg(target_arch = "x86_64")]
fn processor_variant() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b")
        && has!("popcnt")
        && has!("sse3")
        && has!("ssse3")
        && has!("sse4.1")
        && has!("sse4.2");
    let v3 = v2
        && has!("avx")
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => Some("v4"),
        (_, true, _) => Some("v3"),
        (true, _, _) => Some("v2"),
        _ => None,
    }
}

/// Other architectures are taken at their base variant.
#[cfg(not(target_arch = "x86_64"))]
fn processor_variant() -> Option<&'static str> {
    None
}

/// Orders variants: `v8` is 800, `v8.2` is 802.
fn level(variant: &str) -> Option<u32> {
    let (major, minor) = match variant.strip_prefix('v')?.split_once('.') {
        Some((major, minor)) => (major, minor.parse::<u8>().ok()?),
        None => (variant.strip_prefix('v')?, 0),
    };
    Some(u32::from(major.parse::<u8>().ok()?) * 100 + u32::from(minor))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", shown(variant)),
            None => Ok(()),
        }
    }
}

impl From<RawPlatform> for Platform {
    fn from(raw: RawPlatform) -> Self {
        Self::new(&raw.os, &raw.architecture, raw.variant.as_deref())
    }
}
