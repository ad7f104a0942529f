//! Any bytes where a PROXY header belongs, cut into any pieces: the same header is found, or none, as if
//! they had come at once; what follows a header is the stream, whole.
//!
//! Read as: eight lengths of pieces, and the bytes.

use crate::pieces;
use cubenet_core::layer::{Ends, Identity, Layer, LayerState, MakeLayer};
use cubenet_core::{Instant, address::Prefix};
use cubenet_proxy::AcceptProxy;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The longest that a header can be: what comes first, and a length of two bytes.
const LONGEST: usize = 16 + 65_535;

/// What a layer makes of bytes.
#[derive(Debug, PartialEq)]
enum Outcome {
    Header(Box<Identity>, Vec<u8>),
    Waits,
    Fails,
}

/// Panics if `data` breaks the property of this module.
pub fn check(data: &[u8]) {
    let Some((cuts, bytes)) = data.split_first_chunk() else {
        return;
    };
    let whole = read(std::iter::once(bytes));
    let cut = read(pieces(bytes, cuts));
    assert_eq!(whole, cut);
    if let Outcome::Header(_, rest) = whole {
        assert!(bytes.ends_with(&rest));
    }
}

fn read<'d>(pieces: impl Iterator<Item = &'d [u8]>) -> Outcome {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let here = SocketAddr::new(address, 1);
    let trusted = Prefix::new(address, 32).expect("an address has 32 bits");
    let mut layer = AcceptProxy::new([trusted]).make_layer(Ends::new(here, here));
    let (mut stream, mut wire) = (Vec::new(), Vec::new());
    layer.begin(Instant::ZERO, &mut wire);
    for piece in pieces {
        layer.handle_input(&mut piece.to_vec(), &mut stream, &mut wire);
        assert!(layer.held() <= 2 * (LONGEST + piece.len()));
    }
    assert!(wire.is_empty());
    match layer.state() {
        LayerState::Open => {
            let mut identity = Identity::default();
            layer.identify(&mut identity);
            Outcome::Header(Box::new(identity), stream)
        }
        LayerState::Handshaking => Outcome::Waits,
        _ => {
            assert_eq!((layer.held(), stream.len()), (0, 0));
            Outcome::Fails
        }
    }
}
