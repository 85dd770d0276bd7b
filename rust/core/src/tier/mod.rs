//! The tiers below the device: RAM in page slots, files in segments.

pub mod disk;
pub mod lock;
pub mod ram;
