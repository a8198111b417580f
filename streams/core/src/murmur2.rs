//! Kafka's hash of a key: which partition it belongs to.

/// As Kafka's Java client computes it, with the sign bit cleared.
pub fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5BD1_E995;
    let mut h = 0x9747_B28C ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let k = u32::from_le_bytes(*word).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ (k ^ k >> 24).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let mut word = [0; 4];
        word[..rest.len()].copy_from_slice(rest);
        h = (h ^ u32::from_le_bytes(word)).wrapping_mul(M);
    }
    h = (h ^ h >> 13).wrapping_mul(M);
    (h ^ h >> 15) & 0x7FFF_FFFF
}

#[cfg(test)]
mod tests {
    use super::murmur2;

    #[test]
    fn as_kafka_says() {
        // From the tests of Kafka's Java client, with the sign bit cleared.
        assert_eq!(murmur2(b"21"), (-973932308i32 as u32) & 0x7FFF_FFFF);
        assert_eq!(murmur2(b"foobar"), (-790332482i32 as u32) & 0x7FFF_FFFF);
        assert_eq!(murmur2(b"a-little-bit-long-string"), (-985981536i32 as u32) & 0x7FFF_FFFF);
    }
}
