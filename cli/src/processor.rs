//! Whether the processor has the instructions that this build uses. Without them it would end at one of them, with no
//! word about why.

use std::arch::x86_64::{__cpuid, __cpuid_count};

use aubade_proto::{Error, ErrorCode, Result};

/// Bits with which a processor of x86-64 tells what it has: of leaf 1, of leaf 7, and of the extended leaf 1.
#[derive(Clone, Copy, Debug)]
struct Leaves {
    first: u32,
    seventh: u32,
    extended: u32,
}

impl Leaves {
    /// Of the instructions of x86-64-v3 (System V ABI, AMD64 supplement) those that are missing.
    fn missing(self) -> Vec<&'static str> {
        let needed = [
            ("FMA", self.first, 12),
            ("MOVBE", self.first, 22),
            // AVX, with registers that the system saves.
            ("OSXSAVE", self.first, 27),
            ("AVX", self.first, 28),
            ("F16C", self.first, 29),
            ("BMI1", self.seventh, 3),
            ("AVX2", self.seventh, 5),
            ("BMI2", self.seventh, 8),
            ("LZCNT", self.extended, 5),
        ];
        needed.into_iter().filter(|(_, bits, bit)| bits >> bit & 1 == 0).map(|(name, _, _)| name).collect()
    }
}

/// Makes sure that this build can run here.
///
/// # Errors
/// `NotSupported` where it cannot.
pub(crate) fn check() -> Result<()> {
    let highest = __cpuid(0).eax;
    let leaves = Leaves {
        first: __cpuid(1).ecx,
        seventh: if highest >= 7 { __cpuid_count(7, 0).ebx } else { 0 },
        extended: if __cpuid(0x8000_0000).eax > 0x8000_0000 { __cpuid(0x8000_0001).ecx } else { 0 },
    };
    let missing = leaves.missing();
    if missing.is_empty() { Ok(()) } else { Err(refusal(&missing)) }
}

fn refusal(missing: &[&str]) -> Error {
    let text = format!("this processor lacks {}, which this build of aubade uses", missing.join(", "));
    Error::new(ErrorCode::NotSupported, text)
        .hint("build it for this processor: RUSTFLAGS='-C target-cpu=native' cargo build --release")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_processor_is_told_what_it_lacks() {
        // What a processor of 2012 says: AVX and F16C, but neither AVX2 nor what came with it.
        let older = Leaves { first: 1 << 27 | 1 << 28 | 1 << 29, seventh: 0, extended: 0 };
        assert_eq!(older.missing(), ["FMA", "MOVBE", "BMI1", "AVX2", "BMI2", "LZCNT"]);
        let newer = Leaves { first: u32::MAX, seventh: u32::MAX, extended: u32::MAX };
        assert!(newer.missing().is_empty());
        let error = refusal(&older.missing());
        assert!(error.message().contains("AVX2") && error.hint_text().unwrap().contains("target-cpu"), "{error:?}");
        check().unwrap();
    }
}
