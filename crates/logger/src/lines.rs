//! Cuts the bytes of one pipe into lines, and lines that are too long into pieces.
//!
//! Driven by lending out free space to read into and then being told how much was read. The
//! buffer never grows.

/// The longest text in one record; a longer line becomes several.
pub const MAX_PIECE_BYTES: usize = 16 * 1024;

/// A whole line without its newline, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The bytes as the container wrote them, free of newlines.
    pub text: &'a [u8],
    /// Whether the line ends here, or goes on in the next piece.
    pub last: bool,
}

/// The unfinished line of one pipe.
pub struct Lines {
    buffer: Box<[u8]>,
    filled: usize,
}

impl Lines {
    /// Starts at the beginning of a line.
    pub fn new() -> Self {
        Self { buffer: vec![0; 2 * MAX_PIECE_BYTES].into_boxed_slice(), filled: 0 }
    }

    /// The space to read into, never less than one piece.
    pub fn free(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Takes in `count` bytes that were read into the free space and gives out what is ready:
    /// whole lines, and the front of a line longer than a piece.
    pub fn advance(&mut self, count: usize, push: &mut impl FnMut(Piece<'_>)) {
        let mut search_from = self.filled;
        let end = (self.filled + count).min(self.buffer.len());
        let mut start = 0;
        loop {
            let newline = self.buffer[search_from..end].iter().position(|&byte| byte == b'\n');
            let line_end = newline.map_or(end, |offset| search_from + offset);
            while line_end - start > MAX_PIECE_BYTES {
                push(Piece { text: &self.buffer[start..start + MAX_PIECE_BYTES], last: false });
                start += MAX_PIECE_BYTES;
            }
            if newline.is_none() {
                break;
            }
            push(Piece { text: &self.buffer[start..line_end], last: true });
            start = line_end + 1;
            search_from = start;
        }
        self.buffer.copy_within(start..end, 0);
        self.filled = end - start;
    }

    /// Gives out an unterminated last line, as a whole one.
    pub fn finish(&mut self, push: &mut impl FnMut(Piece<'_>)) {
        if self.filled > 0 {
            push(Piece { text: &self.buffer[..self.filled], last: true });
            self.filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in reads of at most `step` bytes and collects the pieces.
    fn cut(input: &[u8], step: usize) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Lines::new();
        let mut pieces = Vec::new();
        let mut push = |piece: Piece<'_>| pieces.push((piece.text.to_vec(), piece.last));
        let mut rest = input;
        while !rest.is_empty() {
            let free = lines.free();
            let count = rest.len().min(step).min(free.len());
            free[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            lines.advance(count, &mut push);
        }
        lines.finish(&mut push);
        pieces
    }

    #[test]
    fn lines_come_out_the_same_however_they_were_read() {
        let expected: Vec<_> =
            ["one", "", "three\r", "tail"].iter().map(|text| (text.as_bytes().to_vec(), true)).collect();
        for step in [1, 2, 3, 5, 100] {
            assert_eq!(cut(b"one\n\nthree\r\ntail", step), expected, "step {step}");
        }
    }

    #[test]
    fn only_lines_over_the_limit_are_cut() {
        let check = |length: usize, expected: &[(usize, bool)]| {
            let mut input = vec![b'x'; length];
            input.extend_from_slice(b"\nnext\n");
            for step in [1000, MAX_PIECE_BYTES, MAX_PIECE_BYTES + 1, usize::MAX] {
                let pieces = cut(&input, step);
                let (next, long) = pieces.split_last().expect("the next line is there");
                let lengths: Vec<_> = long.iter().map(|(text, last)| (text.len(), *last)).collect();
                assert_eq!(lengths, expected, "length {length} step {step}");
                assert_eq!(next.0, b"next");
            }
        };
        check(MAX_PIECE_BYTES, &[(MAX_PIECE_BYTES, true)]);
        check(MAX_PIECE_BYTES + 1, &[(MAX_PIECE_BYTES, false), (1, true)]);
        check(2 * MAX_PIECE_BYTES, &[(MAX_PIECE_BYTES, false), (MAX_PIECE_BYTES, true)]);
        check(40_000, &[(MAX_PIECE_BYTES, false), (MAX_PIECE_BYTES, false), (40_000 - 2 * MAX_PIECE_BYTES, true)]);
    }

    #[test]
    fn nothing_in_gives_nothing_out() {
        assert!(cut(b"", 1).is_empty());
    }
}
