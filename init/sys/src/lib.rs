//! Kernel adapters: the only home of unsafe code.
