package store

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultReserve is how much of a disk of that many bytes is left free, unless
// the operator says otherwise: enough for the engine to flush and compact what
// it holds in memory when writing has stopped.
func DefaultReserve(size int64) int64 { return min(256<<20, size/20) }

// DiskSize returns the size of the file system that holds dir.
func DiskSize(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("asking for the size of the disk of %s: %w", dir, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// A Space watches the free space of a file system, for all adapters that
// write to it. Badger maps files into memory and dies by SIGBUS when the disk
// is full, and again at its next start; so it must never meet a full disk:
// every write first asks the Space, which refuses below a reserve.
//
// A nil *Space refuses nothing. Methods may be called concurrently.
type Space struct {
	free func() (int64, error)

	mu       sync.Mutex
	reserve  int64 // guarded by mu, as all below
	promised int64 // to running uploads, and not yet written
}

// NewSpace watches the file system that holds dir, which must be there, and
// keeps reserve bytes of it free: 0 stands for [DefaultReserve].
func NewSpace(dir string, reserve int64) (*Space, error) {
	if reserve == 0 {
		size, err := DiskSize(dir)
		if err != nil {
			return nil, err
		}
		reserve = DefaultReserve(size)
	}
	return NewSpaceFunc(reserve, func() (int64, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return 0, fmt.Errorf("asking for the free space of %s: %w", dir, err)
		}
		return int64(st.Bavail) * st.Bsize, nil
	}), nil
}

// NewSpaceFunc is NewSpace with another way to learn how much is free.
func NewSpaceFunc(reserve int64, free func() (int64, error)) *Space {
	return &Space{reserve: reserve, free: free}
}

// Keep adds n bytes to the reserve: room that an adapter needs to write what it
// has accepted already.
func (s *Space) Keep(n int64) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserve += n
}

// Check returns an error that is ErrNoSpace unless n more bytes leave the
// reserve, and what was promised, untouched.
func (s *Space) Check(n int64) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.check(n)
}

func (s *Space) check(n int64) error {
	free, err := s.free()
	if err != nil {
		return err
	}
	if free-s.promised-n < s.reserve {
		return fmt.Errorf("%w: %d bytes are free, %d of them promised to running uploads and %d kept in reserve; %d are asked for",
			ErrNoSpace, free, s.promised, s.reserve, n)
	}
	return nil
}

// Promise sets n bytes aside, or returns an error that is ErrNoSpace.
func (s *Space) Promise(n int64) error {
	if s == nil || n <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.check(n); err != nil {
		return err
	}
	s.promised += n
	return nil
}

// Release takes back a promise of n bytes, because they have been written or
// never will be.
func (s *Space) Release(n int64) {
	if s == nil || n <= 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promised -= n
}

// Usage returns how many bytes are free, how many of them are promised to
// running uploads, and how many are kept in reserve.
func (s *Space) Usage() (free, promised, reserve int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	free, err = s.free()
	return free, s.promised, s.reserve, err
}
