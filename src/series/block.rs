//! A block: the values of one subject over some hours, as one row of the store.
//!
//! A column is stored as its lowest value, a step, and a 16-bit number of steps for each point: a part in 65,534 of the
//! block's range is finer than any chart. One that never changes costs nine bytes.

/// Says how rows are written.
const FORMAT: u8 = 1;
/// No value.
const NONE: u16 = u16::MAX;
/// Steps between the lowest and the highest value.
const STEPS: f32 = 65_534.0;

/// A column for each thing, a value for each point; NaN where there is none.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Block {
    columns: Vec<Vec<f32>>,
}

impl Block {
    pub(super) fn empty(columns: usize, points: usize) -> Self {
        Self { columns: vec![vec![f32::NAN; points]; columns] }
    }

    pub(super) fn get(&self, column: usize, point: usize) -> Option<f32> {
        self.columns.get(column)?.get(point).copied().filter(|value| value.is_finite())
    }

    pub(super) fn set(&mut self, column: usize, point: usize, value: f32) {
        if let Some(place) = self.columns.get_mut(column).and_then(|column| column.get_mut(point)) {
            *place = if value.is_finite() { value } else { f32::NAN };
        }
    }

    /// Format, then for each column: how many points follow (u16; the rest have none), the lowest value and the step
    /// (f32), and the points (u16). Little-endian. Without a step every point is the lowest value, and `points` of them
    /// follow only if one is missing.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        for column in &self.columns {
            let known = column.iter().rposition(|value| value.is_finite()).map_or(0, |last| last + 1);
            let present = || column[..known].iter().copied().filter(|value| value.is_finite());
            let (low, high) = present().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)));
            let step = if known == 0 { 0.0 } else { (high - low) / STEPS };
            bytes.extend((known as u16).to_le_bytes());
            if known == 0 {
                continue;
            }
            let whole = present().count() == known;
            bytes.extend(low.to_le_bytes());
            bytes.extend(step.to_le_bytes());
            bytes.push(u8::from(step > 0.0 || !whole));
            if step > 0.0 || !whole {
                for value in &column[..known] {
                    let steps = match value.is_finite() {
                        false => NONE,
                        true if step > 0.0 => ((value - low) / step).round().clamp(0.0, STEPS) as u16,
                        true => 0,
                    };
                    bytes.extend(steps.to_le_bytes());
                }
            }
        }
        bytes
    }

    /// What [`Block::encode`] wrote; `None` of anything else.
    pub(super) fn decode(bytes: &[u8], columns: usize, points: usize) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        if bytes.u8()? != FORMAT {
            return None;
        }
        let mut block = Self::empty(columns, points);
        for column in &mut block.columns {
            let known = usize::from(bytes.u16()?);
            if known > points {
                return None;
            }
            if known == 0 {
                continue;
            }
            let (low, step) = (bytes.f32()?, bytes.f32()?);
            let listed = bytes.u8()? != 0;
            for place in &mut column[..known] {
                let steps = if listed { bytes.u16()? } else { 0 };
                if steps != NONE {
                    *place = low + step * f32::from(steps);
                }
            }
        }
        Some(block)
    }
}

/// Bytes that are read from their beginning.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn f32(&mut self) -> Option<f32> {
        self.take().map(f32::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(columns: &[&[f32]]) -> Block {
        Block { columns: columns.iter().map(|column| column.to_vec()).collect() }
    }

    #[test]
    fn what_is_written_is_read_to_a_part_in_65534() {
        const N: f32 = f32::NAN;
        let written = block(&[&[1.0, 2.5, N, 64e9], &[7.0, 7.0, 7.0, 7.0], &[N, N, N, N], &[N, 3.0, N, N]]);
        let bytes = written.encode();
        let read = Block::decode(&bytes, 4, 4).unwrap();
        for (column, point) in (0..4).flat_map(|column| (0..4).map(move |point| (column, point))) {
            match (written.get(column, point), read.get(column, point)) {
                (Some(a), Some(b)) => assert!((a - b).abs() <= 64e9 / 65_534.0, "{a} {b}"),
                (a, b) => assert_eq!(a, b),
            }
        }
        assert_eq!((read.get(1, 3), read.get(3, 1), read.get(3, 0)), (Some(7.0), Some(3.0), None));
        assert!(block(&[&[7.0; 60]]).encode().len() < 16, "what never changes is small");
    }

    #[test]
    fn nonsense_is_no_block() {
        let bytes = block(&[&[1.0, 2.0]]).encode();
        for end in 0..bytes.len() {
            assert_eq!(Block::decode(&bytes[..end], 1, 2), None, "{end}");
        }
        assert_eq!(Block::decode(&[9, 0, 0], 1, 2), None, "another format");
        assert_eq!(Block::decode(&[1, 255, 255, 0, 0], 1, 2), None, "more points than a block has");
    }
}
