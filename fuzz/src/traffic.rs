//! Frames that real programs sent, and what mutation makes of them: whatever decodes encodes
//! to the same bytes again, and a length that an input leaves open is the only thing left.
//! The input is the stream itself.

use cubenet_core::frame::{MAX_PAYLOAD, header};
use cubenet_core::{CloseReason, Decoder, Frame, Growing, Instant, Limits, RecvHalf};

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let limits = Limits::default();
    let decoder = Decoder::new(Growing::new(), limits.max_message());
    let mut receiver = RecvHalf::connecting(decoder, Instant::ZERO);
    let mut input = data;
    let mut encoded = Vec::with_capacity(data.len());
    loop {
        match receiver.handle_input(&mut input, Instant::ZERO) {
            Ok(Some(message)) => {
                let frame = Frame::new(&message).expect("a message that arrived fits a frame");
                assert_eq!(frame.payload(), &*message);
                assert_eq!(frame.as_bytes()[..2], header(message.len()).unwrap());
                encoded.extend_from_slice(frame.as_bytes());
            }
            Ok(None) => break,
            Err(error) => panic!("no header is over {MAX_PAYLOAD}: {error}"),
        }
    }
    assert!(data.starts_with(&encoded));
    let rest = &data[encoded.len()..];
    let truncated = receiver.handle_fin() == CloseReason::Truncated;
    assert_eq!(truncated, !rest.is_empty());
    if let [first, second, payload @ ..] = rest {
        assert!(payload.len() < usize::from(u16::from_be_bytes([*first, *second])));
    }
    assert_eq!(receiver.footprint() > 0, rest.len() > 2);
}
