"""The parts that methods share, one role a file: backbone, initializer, aggregator, redundancy, decoder."""
