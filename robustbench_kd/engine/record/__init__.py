"""From the ledger to the record of a run: accuracies, intervals, findings, one row per example."""
