package fs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/assay-dev/assay/store"
)

// A dropping is what a disk holds for certain below Blobs: what was synced,
// and nothing else. It stands at the seam that every sync passes, so it sees
// each of them just before it happens.
type dropping struct {
	t   testing.TB
	dir string // of the blobs

	// lie names a sync that the disk claims to have made and did not.
	lie string

	mu    sync.Mutex
	files map[string]durableFile     // by path below dir; guarded by mu
	names map[string]map[string]bool // by directory; guarded by mu
	syncs int                        // that were made
	cut   func()                     // called before each sync

	rest string // where what is left after a power cut is built, each time anew
}

type durableFile struct {
	content []byte
	mode    fs.FileMode
}

// sync is the hook: first the power may go, and then the sync happens.
func (d *dropping) sync(op, path string) error {
	rel, err := filepath.Rel(d.dir, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return nil // above the blobs, where Open makes its folder
	}
	if d.cut != nil {
		d.cut()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	info, err := os.Stat(path)
	if err != nil {
		d.t.Errorf("%s of %s: %v", op, rel, err)
		return nil
	}
	if kind := op + " " + map[bool]string{true: "directory", false: "file"}[info.IsDir()]; kind == d.lie {
		return nil
	}
	if info.IsDir() {
		entries, err := os.ReadDir(path)
		if err != nil {
			d.t.Error(err)
		}
		d.names[rel] = map[string]bool{}
		for _, e := range entries {
			d.names[rel][e.Name()] = true
		}
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		d.t.Error(err)
	}
	mode := info.Mode().Perm()
	if op == "fdatasync" {
		// "fdatasync() … does not flush modified metadata unless that metadata
		// is needed in order to allow a subsequent data retrieval"
		mode = writing
		if old, ok := d.files[rel]; ok {
			mode = old.mode
		}
	}
	d.files[rel] = durableFile{content, mode}
	return nil
}

// after builds what may be on the disk after the power went: what was synced,
// and of the rest as much as luck has.
func (d *dropping) after(luck string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := d.rest
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			err = os.Remove(path)
		}
		return err
	})
	write := func(rel string, content []byte, mode fs.FileMode) {
		path := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			d.t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			d.t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			d.t.Fatal(err)
		}
	}
	filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(d.dir, path)
		info, err := e.Info()
		if err != nil {
			return err
		}
		now, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		named := d.names[filepath.Dir(rel)][filepath.Base(rel)]
		sure, synced := d.files[rel]
		if !synced {
			sure.mode = writing // as it was made
		}
		switch luck {
		case "none": // nothing that was not synced
			if named {
				write(rel, sure.content, sure.mode)
			}
		case "names": // and all names and modes, but no bytes
			write(rel, sure.content, info.Mode().Perm())
		case "torn": // and all names and modes, and some of the bytes
			more := now[min(len(sure.content), len(now)):]
			write(rel, append(slices.Clone(sure.content), more[:len(more)/2]...), info.Mode().Perm())
		case "all":
			write(rel, now, info.Mode().Perm())
		}
		return nil
	})
	for _, rel := range slices.Sorted(maps.Keys(d.files)) {
		// What was removed and not synced may come back.
		if _, err := os.Lstat(filepath.Join(d.dir, rel)); err != nil && luck == "none" && d.names[filepath.Dir(rel)][filepath.Base(rel)] {
			write(rel, d.files[rel].content, d.files[rel].mode)
		}
	}
	return dir
}

// A promise is what a writer was told.
type promise struct {
	content   []byte // all that was written
	synced    int    // of it by Sync
	committed bool   // by Commit
	removed   bool
}

// kept lists the promises that storage in dir does not keep.
func kept(t testing.TB, dir string, promises map[store.Key]*promise) (broken []string) {
	b, err := Open(dir, Options{})
	if err != nil {
		return []string{fmt.Sprintf("it does not open: %v", err)}
	}
	defer b.Close()
	for _, err := range b.List(t.Context()) {
		if err != nil {
			broken = append(broken, fmt.Sprintf("listing: %v", err))
		}
	}
	for k, p := range promises {
		switch {
		case p.removed:
		case p.committed:
			r, err := b.Open(t.Context(), k)
			if err != nil {
				broken = append(broken, fmt.Sprintf("%s was committed: %v", k, err))
				continue
			}
			got, err := io.ReadAll(r)
			r.Close()
			if err != nil || !bytes.Equal(got, p.content) {
				broken = append(broken, fmt.Sprintf("%s was committed with %d bytes and has %d others (%v)", k, len(p.content), len(got), err))
			}
		case p.synced > 0:
			w, err := b.Resume(t.Context(), k)
			if err == store.ErrExists {
				// It was about to be committed when the power went, and its mode
				// came first. No row names it: who resumes it is told to begin
				// again, as after any session that is unknown.
				continue
			}
			if err != nil {
				broken = append(broken, fmt.Sprintf("%s was synced: %v", k, err))
				continue
			}
			got := make([]byte, p.synced)
			n, err := w.ReadAt(got, 0)
			w.Close()
			if n < p.synced || !bytes.Equal(got, p.content[:p.synced]) {
				broken = append(broken, fmt.Sprintf("of %s %d bytes were synced and %d are there (%v)", k, p.synced, n, err))
			}
		}
	}
	return broken
}

// life writes, resumes, commits and removes blobs over a dropping disk. Before
// each of its syncs the power goes, in four ways, and what was promised until
// then is looked for. It returns what was broken, and how many syncs there were.
func life(t testing.TB, lie string, opt Options) (broken []string, syncs int) {
	dir := filepath.Join(t.TempDir(), "blobs")
	d := &dropping{t: t, dir: dir, lie: lie, rest: t.TempDir(), files: map[string]durableFile{}, names: map[string]map[string]bool{}}
	promises := map[store.Key]*promise{}
	d.cut = func() {
		if lie != "" && len(broken) > 0 {
			return // that is all that is asked
		}
		for _, luck := range []string{"none", "names", "torn", "all"} {
			for _, what := range kept(t, d.after(luck), promises) {
				broken = append(broken, fmt.Sprintf("before sync %d, of what was not synced %s: %s", d.syncs, luck, what))
			}
		}
	}
	opt.fail = d.sync
	b := open(t, dir, opt)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	piece := func() []byte {
		p := make([]byte, 1+random.IntN(5000))
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		return p
	}
	for range 3 {
		var writers []store.BlobWriter
		for range 3 { // at the same time
			w, err := b.Create(t.Context(), -1)
			must(err)
			writers = append(writers, w)
			promises[w.Key()] = &promise{}
		}
		write := func(w store.BlobWriter) {
			p := piece()
			_, err := w.Write(p)
			must(err)
			w.(*writer).flushing() // the power goes at one sync at a time
			promises[w.Key()].content = append(promises[w.Key()].content, p...)
		}
		for _, w := range writers {
			write(w)
			write(w)
			must(w.Sync())
			promises[w.Key()].synced = len(promises[w.Key()].content)
			write(w)
		}
		for i, w := range writers {
			p := promises[w.Key()]
			switch i {
			case 0:
				must(w.Commit())
				p.committed = true
			case 1: // goes on in another process
				must(w.Sync())
				p.synced = len(p.content)
				must(w.Close())
				w, err := b.Resume(t.Context(), w.Key())
				must(err)
				write(w)
				must(w.Commit())
				p.committed = true
			case 2: // is sent again from the middle, and given up
				must(w.Truncate(int64(p.synced / 2)))
				p.synced, p.content = p.synced/2, p.content[:p.synced/2]
				write(w)
				must(w.Sync())
				p.synced = len(p.content)
				must(w.Close())
				p.removed = true
				must(b.Remove(t.Context(), w.Key()))
			}
		}
	}
	d.cut()
	return broken, d.syncs
}

// At every sync point the power goes, and what was acknowledged is there.
func TestPowerCutAtEverySync(t *testing.T) {
	without := 0
	for _, opt := range []Options{{}, {flushAfter: 1}} { // with none and with all of the syncs behind what is written
		broken, syncs := life(t, "", opt)
		for _, what := range broken {
			t.Error(what)
		}
		if syncs < 25 || syncs == without {
			t.Errorf("only %d syncs were seen", syncs)
		}
		without = syncs
		t.Logf("%d syncs, %d power cuts", syncs, 4*(syncs+1))
	}
}

// Each kind of sync is needed: a disk that leaves it out loses what was
// acknowledged, and the test above would say so.
func TestEverySyncIsNeeded(t *testing.T) {
	for _, lie := range []string{"fsync directory", "fsync file", "fdatasync file"} {
		broken, _ := life(t, lie, Options{})
		if len(broken) == 0 {
			t.Errorf("a disk without %s loses nothing: the test shows nothing, or the sync is not needed", lie)
		} else {
			t.Logf("without %s: %s", lie, broken[0])
		}
	}
}
