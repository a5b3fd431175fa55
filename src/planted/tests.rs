//! What each defect does.
