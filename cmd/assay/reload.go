package main

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// reloading is what one or more files say now: they are read again when one of
// them has changed. What cannot be read or parsed is logged, and what was in
// force stays.
type reloading[T any] struct {
	paths []string
	parse func(contents [][]byte) (T, error)
	log   *slog.Logger

	mu      sync.Mutex
	now     T         // guarded by mu, as all below
	stamp   string    // of the files that now was made from, or was tried from
	checked time.Time // when the files were last looked at
}

// reloadEvery is how long a change of a file may go unnoticed.
const reloadEvery = time.Second

func newReloading[T any](log *slog.Logger, parse func([][]byte) (T, error), paths ...string) (*reloading[T], error) {
	f := &reloading[T]{paths: paths, parse: parse, log: log}
	f.stamp = f.look()
	var err error
	f.now, err = f.read()
	f.checked = time.Now()
	return f, err
}

func (f *reloading[T]) look() (stamp string) {
	for _, p := range f.paths {
		info, err := os.Stat(p)
		if err != nil {
			stamp += err.Error()
			continue
		}
		stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), ";")
	}
	return stamp
}

func (f *reloading[T]) read() (v T, err error) {
	var contents [][]byte
	for _, p := range f.paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			return v, err
		}
		contents = append(contents, raw)
	}
	if v, err = f.parse(contents); err != nil {
		return v, fmt.Errorf("%s: %w", f.paths[0], err)
	}
	return v, nil
}

// get returns what is in force.
func (f *reloading[T]) get() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.checked) < reloadEvery {
		return f.now
	}
	f.checked = time.Now()
	stamp := f.look()
	if stamp == f.stamp {
		return f.now
	}
	f.stamp = stamp
	v, err := f.read()
	if err != nil {
		f.log.Error("a changed file cannot be used; what was in force stays", "file", f.paths[0], "error", err)
		return f.now
	}
	f.log.Info("reloaded", "file", f.paths[0])
	f.now = v
	return v
}
