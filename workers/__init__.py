"""The only room with torch: nodes, slots, engines."""
