package registry

import "testing"

// TestBuffers: the processor has near what was used last, so that is lent
// first; and there is an end to them.
func TestBuffers(t *testing.T) {
	var b buffers
	one, two := b.get(uploadBuffer), b.get(uploadBuffer)
	b.put(one)
	b.put(two)
	for range 3 {
		if got := b.get(uploadBuffer); &got[0] != &two[0] {
			t.Fatal("not the buffer that came back last")
		}
		b.put(two)
	}

	var lent [][]byte
	for range largeBuffers {
		buf := b.get(1 << 30)
		if len(buf) != uploadBuffer {
			t.Fatalf("buffer %d has %d bytes", len(lent), len(buf))
		}
		lent = append(lent, buf)
	}
	small := b.get(1 << 30)
	if len(small) != smallBuffer {
		t.Fatalf("when all are lent, one has %d bytes", len(small))
	}
	b.put(small)
	b.put(lent[7][:5]) // as a last piece comes back
	if got := b.get(1 << 30); &got[0] != &lent[7][0] || len(got) != uploadBuffer {
		t.Fatalf("a buffer of %d bytes, not the one that came back", len(got))
	}
	if got := b.get(100); len(got) != 512 {
		t.Fatalf("an upload of 100 bytes has a buffer of %d", len(got))
	}
}
