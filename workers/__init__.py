"""The processes of a node: node, writer, flusher, compactor, reader. A worker module is only the loop: take a message, call the
engine in `keyva`, answer. Installed as ``keyva.workers``; nothing in `keyva` imports it."""
