//! The delivery gate
