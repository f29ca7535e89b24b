//! board_metrics
