//! The header of a safetensors file: bounded, unique, inside the file.
//!
//! The format's own crate parses it and checks that the tensors cover the file without gaps. What it lets through is
//! stopped before: a header of 98 MB costs it seconds and a gigabyte, and of two tensors of one name it keeps one.

use std::collections::BTreeSet;
use std::fmt;

use safetensors::{SafeTensorError, SafeTensors};
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{Entry, brief, files::Bytes};

/// Bytes of a header at most. The largest real one is near 2 MiB.
pub const HEADER_LIMIT: usize = 16 << 20;
/// Tensors of a checkpoint at most.
pub const TENSOR_LIMIT: usize = 20_000;

const PREFIX: usize = 8;

/// The tensors of one file. `file` of every entry is left 0.
pub(super) fn read(file: &Bytes) -> Result<Vec<(String, Entry)>, String> {
    let bytes = file.as_slice();
    let Some((length, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(format!("{} bytes, too short for a header", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT as u64 {
        return Err(format!("a header of {length} bytes; the limit is {HEADER_LIMIT}"));
    }
    let length = length as usize;
    let Some(text) = rest.get(..length) else {
        return Err(format!("a header of {length} bytes in a file of {}", bytes.len()));
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    reader
        .deserialize_map(Names)
        .and_then(|()| reader.end())
        .map_err(|error| format!("the header: {error}"))?;
    let data = PREFIX + length;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| match error {
        SafeTensorError::MetadataIncompleteBuffer => {
            let (told, found) = (told(text), bytes.len() - data);
            format!("the header tells of {told} bytes of tensors and {found} follow it")
        }
        error => format!("the header: {error}"),
    })?;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        // Checked by the crate; checked again because slices are cut by these numbers.
        let (start, end) = info.data_offsets;
        let place = data.checked_add(start).zip(data.checked_add(end));
        match place {
            Some((start, end)) if start <= end && end <= bytes.len() => {
                let dtype = format!("{:?}", info.dtype);
                tensors.push((name, Entry { file: 0, dtype, shape: info.shape.clone(), start, end }));
            }
            _ => return Err(format!("tensor `{}` lies outside the file", brief(&name))),
        }
    }
    Ok(tensors)
}

/// Where the last tensor ends, by the header.
fn told(text: &[u8]) -> u64 {
    let header: Value = serde_json::from_slice(text).unwrap_or_default();
    let ends = header.as_object().into_iter().flatten().filter_map(|(_, t)| t["data_offsets"][1].as_u64());
    ends.max().unwrap_or_default()
}

/// Looks at the names of the header only: none twice, not too many.
struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if names.contains(&name) {
                return Err(A::Error::custom(format!("tensor `{}` is there twice", brief(&name))));
            }
            names.insert(name);
            if names.len() > TENSOR_LIMIT {
                return Err(A::Error::custom(format!("more than {TENSOR_LIMIT} tensors")));
            }
        }
        Ok(())
    }
}
