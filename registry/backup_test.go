package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

func (h *house) backup(have ...digest.Digest) []byte {
	h.t.Helper()
	var archive bytes.Buffer
	if _, err := h.Backup(h.t.Context(), me, &archive, func(d digest.Digest) bool {
		for _, x := range have {
			if x == d {
				return true
			}
		}
		return false
	}); err != nil {
		h.t.Fatal(err)
	}
	return archive.Bytes()
}

// restoreHouse restores an archive into an empty pair and opens it.
func restoreHouse(t testing.TB, archive io.Reader, clock func() time.Time) (*house, error) {
	h := &house{t: t, db: store.NewMemDB(), blobs: store.NewMemBlobs(), now: clock()}
	dir := filepath.Join(t.TempDir(), "identity")
	_, _, err := Restore(t.Context(), archive, RestoreOptions{DB: h.db, Blobs: h.blobs, Identity: dir})
	if err != nil {
		// What is there must not be taken for a registry.
		id, e := NewIdentity("x")
		if e != nil {
			t.Fatal(e)
		}
		if _, e := Open(t.Context(), Options{DB: h.db, Blobs: h.blobs, Identity: id}); e == nil {
			t.Errorf("after a restore that failed with %v the store can be opened", err)
		}
		return nil, err
	}
	if h.id, err = LoadIdentity(dir); err != nil {
		t.Fatal(err)
	}
	h.open()
	t.Cleanup(func() { h.Close() })
	return h, nil
}

// recorded is the rows without those that say where bytes are.
func recorded(h *house) map[string]string {
	rows := h.db.Rows()
	maps.DeleteFunc(rows, func(k, v string) bool {
		return familyOf([]byte(k)) == "blob" || strings.Contains(v, `"blob":"`) || notInBackup[familyOf([]byte(k))]
	})
	return rows
}

// stocked is a house with everything in it: also a large manifest, an upload
// that runs, and damaged content.
func stocked(t testing.TB) *house {
	h := newHouse(t)
	h.populate()
	m := h.model("big", nil, "", "weights of the big one")
	m = append(m[:len(m)-1], []byte(`,"annotations":{"filler":"`+strings.Repeat("x", inlineManifest)+`"}}`)...)
	h.put("big", "1.0.0", m)
	u, err := h.StartUpload(t.Context(), me, "big", StartUpload{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.AppendUpload(t.Context(), me, "big", u.ID, Chunk{Body: strings.NewReader("half"), Size: 4}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.CreateToken(t.Context(), me, "ci", []access.Grant{{Role: access.Reader, Repositories: "**"}}, time.Hour); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestBackupAndRestore(t *testing.T) {
	h := stocked(t)
	archive := h.backup()
	got, err := restoreHouse(t, bytes.NewReader(archive), h.clock)
	if err != nil {
		t.Fatal(err)
	}
	got.sound()
	if a, b := recorded(h), recorded(got); !maps.Equal(a, b) {
		t.Errorf("%d rows were restored as %d, or changed", len(a), len(b))
	}
	before, err := h.Checkpoint(t.Context(), me)
	if err != nil {
		t.Fatal(err)
	}
	after, err := got.Checkpoint(t.Context(), me)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the log was\n%s\nand is\n%s (%v)", before, after, err)
	}
	if m, err := got.Manifest(t.Context(), me, "big", "1.0.0"); err != nil || len(m.Body) < inlineManifest {
		t.Errorf("the large manifest: %v", err)
	}
	got.blob("a", "life goes on")
	got.put("a", "t", got.model("a", nil, "", "on"))
	got.sound()

	// Twice into the same place is refused.
	if _, _, err := Restore(t.Context(), bytes.NewReader(archive), RestoreOptions{DB: got.db, Blobs: got.blobs, Identity: t.TempDir()}); err == nil {
		t.Error("restored over data")
	}
	if _, err := h.Backup(t.Context(), access.Actor{ID: "a", Grants: []access.Grant{{Role: access.Auditor, Repositories: "**"}}}, io.Discard, nil); !errors.Is(err, access.ErrDenied) {
		t.Errorf("an auditor backs up: %v", err)
	}
}

// An archive that was cut off or changed anywhere is refused, or restores to
// the same (some bytes of a tar archive say nothing).
func TestDamagedBackups(t *testing.T) {
	h := stocked(t)
	archive := h.backup()
	want := recorded(h)
	for n := 0; n < len(archive)-1024-512; n += 2039 {
		if _, err := restoreHouse(t, bytes.NewReader(archive[:n]), h.clock); err == nil {
			t.Errorf("the first %d of %d bytes were restored", n, len(archive))
		}
	}
	refused := 0
	for n := 0; n < len(archive); n += 997 {
		bad := bytes.Clone(archive)
		bad[n] ^= 0x04
		got, err := restoreHouse(t, bytes.NewReader(bad), h.clock)
		if err != nil {
			refused++
			continue
		}
		report, err := got.Fsck(t.Context())
		if err != nil || len(report.Findings) > 0 || !maps.Equal(recorded(got), want) {
			t.Errorf("byte %d was changed, and the restored registry is another one: %v", n, report.Findings)
		}
	}
	if refused < len(archive)/997/4 {
		t.Errorf("only %d damaged archives were refused", refused)
	}
	// What the caller has already is not sent, and its lack is noticed.
	left := h.backup(digest.FromString("weights"))
	if len(left) >= len(archive) {
		t.Error("what was there already was sent again")
	}
	if _, err := restoreHouse(t, bytes.NewReader(left), h.clock); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("an archive without a blob: %v", err)
	}
}

// While a backup is written the registry deletes and collects what is in it,
// and the backup is of the state at its beginning all the same.
func TestBackupOfARunningServer(t *testing.T) {
	h := newHouse(t)
	for i := range 20 {
		h.put("a", fmt.Sprint("t", i), h.model("a", nil, "", fmt.Sprint("weights ", i)))
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := h.Backup(t.Context(), me, w, func(digest.Digest) bool { return false })
		w.CloseWithError(err)
		done <- err
	}()
	var archive bytes.Buffer
	if _, err := io.CopyN(&archive, r, 1024); err != nil {
		t.Fatal(err)
	}
	want := recorded(h)
	for i := range 20 {
		m, err := h.Manifest(t.Context(), me, "a", fmt.Sprint("t", i))
		if err != nil {
			t.Fatal(err)
		}
		if err := h.DeleteManifest(t.Context(), me, "a", m.Descriptor.Digest); err != nil {
			t.Fatal(err)
		}
		if err := h.DeleteBlob(t.Context(), me, "a", digest.FromString(fmt.Sprint("weights ", i))); err != nil {
			t.Fatal(err)
		}
	}
	h.advance(100 * time.Hour)
	if got := h.collect(); len(got.Blobs) != 1 { // the empty config
		t.Errorf("collected %+v", got)
	}
	held := len(h.blobs.Keys())
	if held != 21 {
		t.Errorf("%d of 21 blobs are kept while the backup runs", held)
	}
	if _, err := io.Copy(&archive, r); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if left := len(h.blobs.Keys()); left != 0 {
		t.Errorf("%d blobs are left after the backup", left)
	}
	got, err := restoreHouse(t, &archive, h.clock)
	if err != nil {
		t.Fatal(err)
	}
	got.sound()
	if !maps.Equal(recorded(got), want) {
		t.Error("the backup is not of the state at its beginning")
	}
}
