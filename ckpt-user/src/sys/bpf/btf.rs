//! Where the fields of this kernel's structures are, from its BTF.
//!
//! A path is `struct.member.member…`; members of anonymous structures and unions are found as C finds them.
use std::{fs, io};

use btf_rs::{Btf, BtfType as _, Struct, Type};

/// The running kernel's type information.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Typedefs and qualifiers that lie between a member and its structure; more than this is a loop in the data.
const MAX_CHAIN: usize = 32;
/// Anonymous structures inside one another.
const MAX_DEPTH: usize = 16;

/// Why a field's place is not known.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel has no BTF, or we may not read it.
    #[error("cannot read {VMLINUX}: {0}; the kernel needs CONFIG_DEBUG_INFO_BTF")]
    Unreadable(#[source] io::Error),
    /// It is not BTF as we know it.
    #[error("cannot parse {VMLINUX}: {0}")]
    Malformed(String),
    /// No such structure.
    #[error("this kernel has no struct {0}")]
    NoStruct(String),
    /// No such member.
    #[error("this kernel's struct {structure} has no {member}")]
    NoMember {
        /// Where it was looked for.
        structure: String,
        /// What was looked for.
        member: String,
    },
}

/// Parsed BTF. Parsing takes 0.1 to 0.4 s: see [`super::Offsets`] for what is kept.
pub struct Layout(Btf);

impl Layout {
    /// The running kernel's.
    ///
    /// # Errors
    /// It has none, or it cannot be read or parsed.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(&fs::read(VMLINUX).map_err(BtfError::Unreadable)?)
    }

    /// From the bytes of a BTF blob.
    ///
    /// # Errors
    /// They are not BTF.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        Btf::from_bytes(bytes).map(Self).map_err(|e| BtfError::Malformed(e.to_string()))
    }

    /// The size of a structure, or of the structure that a path leads to, bytes.
    ///
    /// # Errors
    /// There is no such structure.
    pub fn size(&self, path: &str) -> Result<u32, BtfError> {
        let size = self.find(path)?.1.ok_or_else(|| BtfError::NoStruct(path.to_owned()))?.size();
        u32::try_from(size).map_err(|_| BtfError::Malformed(format!("struct {path} of {size} bytes")))
    }

    /// The offset of a field from the beginning of the path's structure, bytes (a bit field's first byte).
    ///
    /// # Errors
    /// The structure or a member on the way does not exist here.
    pub fn offset(&self, path: &str) -> Result<u32, BtfError> {
        Ok(self.bit_offset(path)? / 8)
    }

    /// The same in bits.
    ///
    /// # Errors
    /// As [`Self::offset`].
    pub fn bit_offset(&self, path: &str) -> Result<u32, BtfError> {
        self.find(path).map(|(bits, _)| bits)
    }

    /// Where the path leads: its offset in bits, and the structure there if there is one.
    fn find(&self, path: &str) -> Result<(u32, Option<Struct>), BtfError> {
        let mut names = path.split('.');
        let mut structure = names.next().unwrap_or_default().to_owned();
        let mut inside = Some(self.find_struct(&structure)?);
        let mut bits = 0u32;
        for name in names {
            let missing = || BtfError::NoMember { structure: structure.clone(), member: name.to_owned() };
            let found = inside.as_ref().and_then(|inside| self.find_member(inside, name, MAX_DEPTH));
            let (at, member) = found.ok_or_else(missing)?;
            bits = bits.checked_add(at).ok_or_else(|| BtfError::Malformed(format!("offset of {path}")))?;
            inside = self.structure(member);
            structure = format!("{structure}.{name}");
        }
        Ok((bits, inside))
    }

    /// By name; of several (there are a few, in drivers) the largest, a forward declaration being none.
    fn find_struct(&self, name: &str) -> Result<Struct, BtfError> {
        let types = self.0.resolve_types_by_name(name).unwrap_or_default();
        types
            .into_iter()
            .filter_map(|t| if let Type::Struct(s) = t { Some(s) } else { None })
            .max_by_key(Struct::size)
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))
    }

    /// Bit offset and type of a member, looked for in anonymous members too.
    fn find_member(&self, inside: &Struct, name: &str, depth: usize) -> Option<(u32, u32)> {
        for member in &inside.members {
            let member_name = self.0.resolve_name(member).unwrap_or_default();
            let id = member.get_type_id()?;
            if member_name == name {
                return Some((member.bit_offset(), id));
            }
            if member_name.is_empty() && depth > 0 {
                let found = self.structure(id).and_then(|inner| self.find_member(&inner, name, depth - 1));
                if let Some((bits, id)) = found {
                    return Some((member.bit_offset().checked_add(bits)?, id));
                }
            }
        }
        None
    }

    /// The structure or union behind typedefs and qualifiers.
    fn structure(&self, id: u32) -> Option<Struct> {
        let mut found = self.0.resolve_type_by_id(id).ok()?;
        for _ in 0..MAX_CHAIN {
            let next = match &found {
                Type::Struct(s) | Type::Union(s) => return Some(s.clone()),
                Type::Const(t) => t.get_type_id()?,
                Type::Volatile(t) => t.get_type_id()?,
                Type::Typedef(t) => t.get_type_id()?,
                Type::TypeTag(t) => t.get_type_id()?,
                _ => return None,
            };
            found = self.0.resolve_type_by_id(next).ok()?;
        }
        None
    }
}
