package ingest

import (
	"fmt"
	"io"
	"os"
)

// file makes a reader of a path out of one of bytes.
func file(read func(raw []byte, opt Options) (*Result, error)) func(string, Options) (*Result, error) {
	return func(name string, opt Options) (*Result, error) {
		raw, err := readFile(name)
		if err != nil {
			return nil, err
		}
		r, err := read(raw, opt)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return r, nil
	}
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(raw) > MaxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, MaxFile)
	}
	return raw, err
}
