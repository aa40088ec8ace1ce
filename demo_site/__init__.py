"""A small shop that shows what machinequeue does: receipts, reports and pictures are made on machines of their own."""
