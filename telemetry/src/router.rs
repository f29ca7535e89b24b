//! Local subscribers: who on this board hears a message.
use bytes::Bytes;
/// A message to local subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message { /// Topic name.
    pub topic: String, /// Content.
    pub payload: Bytes, /// 0, 1 or 2.
    pub qos: u8, /// Kept for later subscribers; an empty payload clears.
    pub retain: bool, /// MQTT 5 properties that travel with it (content type, response topic, user properties …), encoded by `mqtt`.
    pub properties: Option<std::sync::Arc<crate::mqtt::PublishProperties>> }
/// Cheap to clone.
#[derive(Clone)]
pub struct Router(std::sync::Arc<()>);
impl Router {
    /// Delivers to every matching subscription of this board. Never waits for a slow subscriber: its queue is bounded, overflow is counted.
    pub fn publish(&self, _message: Message) { todo!() }
}
