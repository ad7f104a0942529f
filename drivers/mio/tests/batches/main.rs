//! Batches of the application's own threads: what is sent within one leaves when it ends.

mod datagrams;
mod streams;
