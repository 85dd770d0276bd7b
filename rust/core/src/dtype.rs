//! Element types of keys and values, and the conversions between them and float32 that
//! the SIMD kernels agree with bit for bit.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Element type of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of a single.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// PyTorch's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// Reads element `index` of little-endian `bytes`, exactly.
    ///
    /// # Panics
    /// When `bytes` is shorter than `index + 1` elements.
    #[inline]
    pub fn read(self, bytes: &[u8], index: usize) -> f32 {
        match self {
            Self::F32 => {
                let at = &bytes[index * 4..index * 4 + 4];
                f32::from_le_bytes([at[0], at[1], at[2], at[3]])
            }
            Self::Bf16 => {
                let at = &bytes[index * 2..index * 2 + 2];
                bf16_to_f32(u16::from_le_bytes([at[0], at[1]]))
            }
            Self::F16 => {
                let at = &bytes[index * 2..index * 2 + 2];
                f16_to_f32(u16::from_le_bytes([at[0], at[1]]))
            }
        }
    }

    /// Writes `value` as element `index` of `bytes`, rounded to nearest, ties to even.
    ///
    /// # Panics
    /// When `bytes` is shorter than `index + 1` elements.
    #[inline]
    pub fn write(self, bytes: &mut [u8], index: usize, value: f32) {
        match self {
            Self::F32 => bytes[index * 4..index * 4 + 4].copy_from_slice(&value.to_le_bytes()),
            Self::Bf16 => {
                bytes[index * 2..index * 2 + 2].copy_from_slice(&f32_to_bf16(value).to_le_bytes());
            }
            Self::F16 => bytes[index * 2..index * 2 + 2].copy_from_slice(&f32_to_f16(value).to_le_bytes()),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::F32, Self::Bf16, Self::F16].into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
            Error::Invalid(format!("dtype {name:?} is not kept; float32, bfloat16 and float16 are"))
        })
    }
}

/// Widens a bfloat16; exact.
#[inline]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Narrows to bfloat16, to nearest, ties to even. A NaN stays a NaN, made quiet.
#[inline]
pub const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x0040;
    }
    // Adding just under half a unit of the last kept place, plus that place's parity,
    // carries exactly when the value is nearer to (or ties with an even) next number.
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Widens a binary16; exact. A NaN stays a NaN, made quiet.
#[inline]
pub const fn f16_to_f32(bits: u16) -> f32 {
    const TWO_POW_MINUS_24: f32 = 1.0 / 16_777_216.0;
    let sign = ((bits & 0x8000) as u32) << 16;
    let magnitude = (bits & 0x7fff) as u32;
    let widened = if magnitude > 0x7c00 {
        (magnitude << 13) | 0x7fc0_0000
    } else if magnitude == 0x7c00 {
        0x7f80_0000
    } else if magnitude >= 0x0400 {
        (magnitude << 13) + ((127 - 15) << 23)
    } else {
        (magnitude as f32 * TWO_POW_MINUS_24).to_bits()
    };
    f32::from_bits(sign | widened)
}

/// Narrows to binary16, to nearest, ties to even; overflow gives infinity. A NaN stays a
/// NaN, made quiet.
#[inline]
pub const fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let narrowed = if magnitude > 0x7f80_0000 {
        0x7e00 | ((magnitude >> 13) & 0x03ff) as u16
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude >= 0x3880_0000 {
        let rounded = magnitude + 0x0fff + ((magnitude >> 13) & 1);
        ((rounded - ((127 - 15) << 23)) >> 13) as u16
    } else {
        // Below 2^-14 the result is subnormal: beside 0.5, a float's last place is 2^-24,
        // so the addition itself rounds to a multiple of the smallest subnormal.
        ((f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000) as u16
    };
    sign | narrowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_agrees_with_an_independent_implementation_for_all_bits() {
        for bits in 0..=u16::MAX {
            let bf16 = half::bf16::from_bits(bits).to_f32();
            let f16 = half::f16::from_bits(bits).to_f32();
            if bf16.is_nan() {
                assert!(bf16_to_f32(bits).is_nan());
            } else {
                assert_eq!(bf16_to_f32(bits).to_bits(), bf16.to_bits());
            }
            if f16.is_nan() {
                assert!(f16_to_f32(bits).is_nan());
            } else {
                assert_eq!(f16_to_f32(bits).to_bits(), f16.to_bits());
            }
        }
    }

    #[test]
    fn narrowing_agrees_with_an_independent_implementation() {
        // All exponents, and around every rounding boundary of either format.
        for high in 0..=u16::MAX {
            for low in [0_u32, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits((high as u32) << 16 | low);
                if value.is_nan() {
                    assert!(bf16_to_f32(f32_to_bf16(value)).is_nan());
                    assert!(f16_to_f32(f32_to_f16(value)).is_nan());
                } else {
                    assert_eq!(f32_to_bf16(value), half::bf16::from_f32(value).to_bits(), "{value:e}");
                    assert_eq!(f32_to_f16(value), half::f16::from_f32(value).to_bits(), "{value:e}");
                }
            }
        }
    }

    #[test]
    fn names_round_trip_and_unknown_ones_list_what_is_accepted() {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            assert_eq!(dtype.name().parse::<DType>().unwrap(), dtype);
        }
        let message = "int8".parse::<DType>().unwrap_err().to_string();
        assert!(message.contains("int8") && message.contains("bfloat16"), "{message}");
    }
}
