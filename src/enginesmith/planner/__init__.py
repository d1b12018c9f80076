"""Order, storage, lifetimes; steps as kernel problems; the plan put together."""
