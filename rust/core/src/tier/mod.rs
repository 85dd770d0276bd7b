//! The tiers below the device: RAM in page slots, files in segments.

pub mod ram;
