//! Sources, ledger, store, applier and status sink of the node agent.
