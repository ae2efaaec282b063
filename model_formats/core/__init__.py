"""What every other folder uses: errors, types, documents, validation, files, arrays, the interface to an engine, the console."""
