package registry

import (
	"bytes"
	"io"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/verify"
)

// A signature comes in two requests: a blob with the bundle, and a manifest
// that attaches it. While the blob's bytes are made durable a processor has
// nothing to do, so the bundle's signature is checked then; what it is about,
// who may say so and when is checked with the manifest, before the commit.
// Nothing depends on it: what was not opened ahead is read and verified as a
// whole.
const (
	// aheadSize is the largest blob, in bytes, that is looked at. What is
	// larger takes so long otherwise that its signature does not count.
	aheadSize = 64 << 10

	// aheadKept is how many bundles wait for their manifests, the newest.
	aheadKept = 64
)

type ahead struct {
	mu    sync.Mutex
	found map[digest.Digest]*opening // guarded by mu
	order []digest.Digest            // the oldest first; guarded by mu
}

// An opening is a bundle that is being opened.
type opening struct {
	done   chan struct{}
	bundle *verify.Opened // set before done is closed; nil if no key verifies it
}

// lookAhead opens a blob if it may be a bundle, and nobody waits for a
// processor to verify with. It has want as its digest.
func (r *Registry) lookAhead(want digest.Digest, blob io.ReaderAt, size int64) {
	trust := r.parsed.Load()
	if trust == nil || size < 2 || size > aheadSize {
		return
	}
	var first [1]byte
	if _, err := blob.ReadAt(first[:], 0); err != nil || first[0] != '{' {
		return
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(blob, 0, size), raw); err != nil || !bytes.Contains(raw, []byte(`"dsseEnvelope"`)) {
		return
	}
	select {
	case r.verifiers <- struct{}{}:
	default:
		return
	}
	o := &opening{done: make(chan struct{})}
	r.ahead.add(want, o)
	go func() {
		defer func() { <-r.verifiers }()
		defer close(o.done)
		// The bytes that were hashed came through memory; these were read back.
		if want.Algorithm().FromBytes(raw) == want {
			o.bundle, _ = verify.Ahead(raw, trust.trust)
		}
	}()
}

func (a *ahead) add(d digest.Digest, o *opening) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.found == nil {
		a.found = map[digest.Digest]*opening{}
	}
	if a.found[d] == nil {
		a.order = append(a.order, d)
	}
	a.found[d] = o
	if len(a.order) > aheadKept {
		delete(a.found, a.order[0])
		a.order = slices.Delete(a.order, 0, 1)
	}
}

// take returns a bundle that was opened ahead, once; nil if it was not.
func (a *ahead) take(d digest.Digest) *verify.Opened {
	a.mu.Lock()
	o := a.found[d]
	if o != nil {
		delete(a.found, d)
		a.order = slices.DeleteFunc(a.order, func(x digest.Digest) bool { return x == d })
	}
	a.mu.Unlock()
	if o == nil {
		return nil
	}
	<-o.done
	return o.bundle
}
