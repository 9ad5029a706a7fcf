package tlog

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// memory is a log in memory.
type memory struct {
	leaves [][]byte
	hashes []Hash
}

func (m *memory) ReadHashes(indexes []int64) ([]Hash, error) {
	out := make([]Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(m.hashes)) {
			return nil, fmt.Errorf("no hash %d", x)
		}
		out[i] = m.hashes[x]
	}
	return out, nil
}

func (m *memory) add(t testing.TB, leaf []byte) {
	first, hashes, err := StoredHashes(int64(len(m.leaves)), leaf, m)
	if err != nil || first != int64(len(m.hashes)) {
		t.Fatalf("StoredHashes: first %d of %d, %v", first, len(m.hashes), err)
	}
	m.leaves, m.hashes = append(m.leaves, leaf), append(m.hashes, hashes...)
}

func (m *memory) tree(t testing.TB) Tree {
	h, err := TreeHash(int64(len(m.leaves)), m)
	if err != nil {
		t.Fatal(err)
	}
	return Tree{N: int64(len(m.leaves)), Hash: h}
}

// The roots of the tree over the eight inputs that Certificate Transparency's
// reference implementation publishes (google/certificate-transparency,
// cpp/merkletree/merkle_tree_test.cc).
func TestPublishedRoots(t *testing.T) {
	leaves := []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"}
	roots := []string{
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		"aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
		"d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
		"4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
		"76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
		"ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
		"5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	}
	m := &memory{}
	for i, l := range leaves {
		leaf, _ := hex.DecodeString(l)
		m.add(t, leaf)
		if root := m.tree(t).Hash; hex.EncodeToString(root[:]) != roots[i] {
			t.Errorf("root of %d leaves is %x, want %s", i+1, root[:], roots[i])
		}
	}
}

func testSigner(t testing.TB) *Signer {
	seed := sha256.Sum256([]byte("test"))
	s, err := NewSigner("log.example/test", ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestProofs(t *testing.T) {
	s, m := testSigner(t), &memory{}
	for size := 1; size <= 70; size++ {
		m.add(t, fmt.Appendf(nil, `{"leaf":%d}`, size-1))
		tree := m.tree(t)
		checkpoint, err := s.Checkpoint(tree)
		if err != nil {
			t.Fatal(err)
		}
		for i := range m.leaves {
			raw, err := Prove(m.leaves[i], int64(i), tree, checkpoint, m)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Verify(raw, s.VerifierKey())
			if err != nil {
				t.Fatalf("leaf %d of %d: %v", i, size, err)
			}
			if p.Index != int64(i) || !bytes.Equal(p.Leaf, m.leaves[i]) || p.Tree != tree {
				t.Fatalf("leaf %d of %d: proved %+v", i, size, p)
			}
		}
	}
	if _, err := Prove(m.leaves[0], 70, m.tree(t), nil, m); err == nil {
		t.Error("a proof of a leaf beyond the end")
	}
}

// Somebody else's verifier (transparency-dev/merkle) agrees with ours.
func TestProofsByAnotherVerifier(t *testing.T) {
	s, m := testSigner(t), &memory{}
	for i := range 13 {
		m.add(t, fmt.Appendf(nil, "leaf %d", i))
	}
	tree := m.tree(t)
	checkpoint, _ := s.Checkpoint(tree)
	raw, err := Prove(m.leaves[5], 5, tree, checkpoint, m)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Verify(raw, s.VerifierKey())
	if err != nil {
		t.Fatal(err)
	}
	var path [][]byte
	for _, line := range bytes.Split(raw, []byte("\n"))[3:] {
		if len(line) == 0 {
			break
		}
		h, err := parseHash(line)
		if err != nil {
			t.Fatal(err)
		}
		path = append(path, h[:])
	}
	leafHash := rfc6962.DefaultHasher.HashLeaf(p.Leaf)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, 5, 13, leafHash, path, tree.Hash[:]); err != nil {
		t.Error(err)
	}
}

func parseHash(line []byte) (h Hash, err error) {
	return h, h.UnmarshalJSON(append(append([]byte{'"'}, line...), '"'))
}

// Change any one byte of a proof: it does not verify as the same statement.
func TestEveryByteOfAProofCounts(t *testing.T) {
	s, m := testSigner(t), &memory{}
	for i := range 9 {
		m.add(t, fmt.Appendf(nil, "leaf number %d", i))
	}
	tree := m.tree(t)
	checkpoint, _ := s.Checkpoint(tree)
	raw, err := Prove(m.leaves[4], 4, tree, checkpoint, m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if p, err := Verify(bad, s.VerifierKey()); err == nil {
			t.Errorf("byte %d (%q) changed and the proof of %q still verifies", i, raw[i], p.Leaf)
		}
	}
	other, _ := NewSigner("log.example/test", ed25519.NewKeyFromSeed(make([]byte, 32)))
	if _, err := Verify(raw, other.VerifierKey()); err == nil {
		t.Error("verified under another log's key")
	}
}

func TestTilePaths(t *testing.T) {
	for _, p := range []TilePath{
		{Level: 0, Index: 0, Width: 256}, {Level: 0, Index: 999, Width: 1}, {Level: 3, Index: 1234067, Width: 256},
		{Entries: true, Index: 70, Width: 12}, {Entries: true, Index: 1000, Width: 256},
	} {
		got, err := ParseTilePath(p.String())
		if err != nil || got != p {
			t.Errorf("%s parses as %+v, %v", p, got, err)
		}
	}
	if s := (TilePath{Level: 0, Index: 1234067, Width: 256}).String(); s != "tile/0/x001/x234/067" {
		t.Errorf("path %s: the example of the specification is tile/0/x001/x234/067", s)
	}
	for _, bad := range []string{"", "tile", "tile/0", "tile/-1/000", "tile/00/000", "tile/0/0", "tile/0/0000", "tile/0/x000/001",
		"tile/0/001/002", "tile/0/000.p/256", "tile/0/000.p/0", "tile/0/000.p/", "tile/entries/", "tile/0/../000", "tile/64/000"} {
		if p, err := ParseTilePath(bad); err == nil {
			t.Errorf("%q parses as %+v", bad, p)
		}
	}
}

func TestTilesHoldTheLeafHashes(t *testing.T) {
	m := &memory{}
	for i := range 300 {
		m.add(t, fmt.Appendf(nil, "leaf %d", i))
	}
	data, err := Tile(TilePath{Index: 1, Width: 44}, 300, m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 44 {
		if want := LeafHash(m.leaves[256+i]); !bytes.Equal(data[i*32:i*32+32], want[:]) {
			t.Fatalf("hash %d of the tile is not that of leaf %d", i, 256+i)
		}
	}
	for _, p := range []TilePath{{Index: 1, Width: 45}, {Index: 2, Width: 1}, {Level: 1, Index: 0, Width: 2}, {Level: 9, Width: 1}, {Level: 7, Width: 256}, {Index: 1 << 50, Width: 256}} {
		if _, err := Tile(p, 300, m); !errors.Is(err, ErrNoTile) {
			t.Errorf("tile %s of a log of 300 leaves: %v", p, err)
		}
	}
}

func TestEntries(t *testing.T) {
	var b []byte
	want := [][]byte{{}, []byte("a"), bytes.Repeat([]byte("x"), MaxLeaf)}
	for _, l := range want {
		b = AppendEntry(b, l)
	}
	got, err := Entries(b)
	if err != nil || len(got) != 3 {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("entry %d differs", i)
		}
	}
	if _, err := Entries(b[:len(b)-1]); err == nil {
		t.Error("a truncated bundle parses")
	}
}

func FuzzVerify(f *testing.F) {
	s, m := testSigner(f), &memory{}
	m.add(f, []byte("leaf"))
	tree := m.tree(f)
	checkpoint, _ := s.Checkpoint(tree)
	raw, _ := Prove(m.leaves[0], 0, tree, checkpoint, m)
	f.Add(raw)
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := Verify(data, s.VerifierKey()); err == nil && !bytes.Equal(p.Leaf, m.leaves[0]) {
			t.Errorf("a forged leaf %q verifies", p.Leaf)
		}
	})
}
