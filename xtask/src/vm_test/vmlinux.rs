//! The kernel without its own decompressor, which takes an emulated processor longer than all of the rest.
//!
//! Where the compressed kernel lies in a bzImage: Documentation/arch/x86/boot.rst, `payload_offset`.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// The format before frames; lz4's doc/lz4_Frame_format.md, "Legacy frame".
const LZ4: &[u8] = b"\x02\x21\x4c\x18";
const ELF: &[u8] = b"\x7fELF";

/// The ELF file in a bzImage.
pub fn extract(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image).context("no kernel that this knows the format of")?;
    let mut kernel = Vec::new();
    if payload.starts_with(XZ) {
        liblzma::read::XzDecoder::new(payload).read_to_end(&mut kernel)?;
    } else if payload.starts_with(ZSTD) {
        ruzstd::decoding::StreamingDecoder::new(payload)?.read_to_end(&mut kernel)?;
    } else if payload.starts_with(LZ4) {
        // Behind it stands the size of the kernel.
        let compressed = &payload[..payload.len().saturating_sub(4)];
        lz4_flex::frame::FrameDecoder::new(compressed).read_to_end(&mut kernel)?;
    } else {
        bail!(
            "a kernel compressed in a way that this does not know: {:02x?}",
            &payload[..payload.len().min(6)]
        );
    }
    ensure!(kernel.starts_with(ELF), "what the image holds is no ELF file");
    Ok(kernel)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match image.get(0x1f1)? {
        0 => 4,
        count => usize::from(*count),
    };
    let start = ((setup_sectors + 1) * 512).checked_add(word(0x248)?)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_lies_behind_the_sectors_of_the_setup() {
        let mut image = vec![0; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x1f1] = 2;
        image[0x248] = 16;
        image[0x24c] = 3;
        image[3 * 512 + 16..][..3].copy_from_slice(b"abc");
        assert_eq!(payload(&image), Some(&b"abc"[..]));
        assert_eq!(payload(&image[..600]), None);
        image[0x24f] = 0xff;
        assert_eq!(payload(&image), None);
    }
}
