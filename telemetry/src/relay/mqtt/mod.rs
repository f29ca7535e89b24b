//! MQTT relay.
