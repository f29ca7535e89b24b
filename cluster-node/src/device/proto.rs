//! Messages of `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto`, as far as a node needs them.

use std::collections::BTreeMap;

use prost::Message;

/// The version that plugins and nodes speak.
pub const VERSION: &str = "v1beta1";
/// `Device.health` of one that works.
pub const HEALTHY: &str = "Healthy";

/// `Empty`, `PreStartContainerResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// `DevicePluginOptions`.
#[derive(Clone, PartialEq, Message)]
pub struct DevicePluginOptions {
    /// It wants to be told before each start of a container.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// It can say which devices go well together.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// `RegisterRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct RegisterRequest {
    /// Of the API.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Name of its socket in the plugins' folder.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// The extended resource.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// Options.
    #[prost(message, optional, tag = "4")]
    pub options: Option<DevicePluginOptions>,
}

/// `NUMANode`.
#[derive(Clone, PartialEq, Message)]
pub struct NumaNode {
    /// Number.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// `TopologyInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct TopologyInfo {
    /// Nodes that it is near to.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NumaNode>,
}

/// `Device`.
#[derive(Clone, PartialEq, Message)]
pub struct Device {
    /// Unique within the resource.
    #[prost(string, tag = "1")]
    pub id: String,
    /// [`HEALTHY`], or not.
    #[prost(string, tag = "2")]
    pub health: String,
    /// Where it is.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<TopologyInfo>,
}

/// `ListAndWatchResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ListAndWatchResponse {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// `PreStartContainerRequest` and `ContainerAllocateRequest`, which have the same field.
#[derive(Clone, PartialEq, Message)]
pub struct DeviceIds {
    /// Devices of the container.
    #[prost(string, repeated, tag = "1")]
    pub devices_ids: Vec<String>,
}

/// `AllocateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct AllocateRequest {
    /// By container; a node asks for one.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<DeviceIds>,
}

/// `ContainerPreferredAllocationRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PreferredRequest {
    /// To choose from.
    #[prost(string, repeated, tag = "1")]
    pub available: Vec<String>,
    /// To be among the chosen.
    #[prost(string, repeated, tag = "2")]
    pub must_include: Vec<String>,
    /// How many.
    #[prost(int32, tag = "3")]
    pub size: i32,
}

/// `PreferredAllocationRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PreferredAllocationRequest {
    /// By container; a node asks for one.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<PreferredRequest>,
}

/// `PreferredAllocationResponse`; its parts, `ContainerPreferredAllocationResponse`, have the field of [`DeviceIds`].
#[derive(Clone, PartialEq, Message)]
pub struct PreferredAllocationResponse {
    /// By container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<DeviceIds>,
}

/// `Mount`.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// In the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// On the host.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Read-only.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// `DeviceSpec`.
#[derive(Clone, PartialEq, Message)]
pub struct DeviceSpec {
    /// In the container.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// On the host.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Of `r`, `w`, `m`.
    #[prost(string, tag = "3")]
    pub permissions: String,
}

/// `CDIDevice`.
#[derive(Clone, PartialEq, Message)]
pub struct CdiDevice {
    /// `vendor.com/class=name`.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `ContainerAllocateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerAllocateResponse {
    /// Environment.
    #[prost(btree_map = "string, string", tag = "1")]
    pub envs: BTreeMap<String, String>,
    /// Mounts.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    /// Device nodes.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<DeviceSpec>,
    /// Annotations for the runtime.
    #[prost(btree_map = "string, string", tag = "4")]
    pub annotations: BTreeMap<String, String>,
    /// CDI devices.
    #[prost(message, repeated, tag = "5")]
    pub cdi_devices: Vec<CdiDevice>,
}

/// `AllocateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct AllocateResponse {
    /// By container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerAllocateResponse>,
}
