//! gRPC messages by `prost`, for `tonic`, which leaves the way of encoding to its users.
//!
//! Messages are written by hand beside their use, each with the name of its proto file.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Encodes `E` and decodes `D`.
#[derive(Debug)]
pub struct ProstCodec<E, D>(PhantomData<fn(E) -> D>);

impl<E, D> Default for ProstCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E: Message + 'static, D: Message + Default + 'static> Codec for ProstCodec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Out<E>;
    type Decoder = In<D>;

    fn encoder(&mut self) -> Out<E> {
        Out(PhantomData)
    }

    fn decoder(&mut self) -> In<D> {
        In(PhantomData)
    }
}

/// The encoding half.
#[derive(Debug)]
pub struct Out<E>(PhantomData<fn(E)>);

impl<E: Message> Encoder for Out<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

/// The decoding half.
#[derive(Debug)]
pub struct In<D>(PhantomData<fn() -> D>);

impl<D: Message + Default> Decoder for In<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        D::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
