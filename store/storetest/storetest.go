// Package storetest is what every storage adapter must pass.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/assay-dev/assay/store"
)

var errRefused = errors.New("refused by the test")

// A DBFactory opens databases for TestDB.
type DBFactory struct {
	// Open returns an empty database.
	Open func(t testing.TB) store.DB

	// Reopen closes db and returns what a new process would find.
	Reopen func(t testing.TB, db store.DB) store.DB
}

// TestDB checks the contract of [store.DB].
func TestDB(t *testing.T, f DBFactory) {
	ctx := t.Context()
	set := func(t testing.TB, db store.DB, kv ...string) {
		t.Helper()
		err := db.Update(ctx, func(store.Reader) (store.Batch, error) {
			var b store.Batch
			for i := 0; i < len(kv); i += 2 {
				b.Set([]byte(kv[i]), []byte(kv[i+1]))
			}
			return b, nil
		})
		if err != nil {
			t.Fatalf("Update: %v", err)
		}
	}
	scan := func(t testing.TB, db store.DB, rg store.Range) (keys []string) {
		t.Helper()
		err := db.View(ctx, func(r store.Reader) error {
			for row, err := range r.Scan(rg) {
				if err != nil {
					return err
				}
				if rg.KeysOnly != (row.Value == nil) {
					return fmt.Errorf("with KeysOnly %v the value of %q is %q", rg.KeysOnly, row.Key, row.Value)
				}
				keys = append(keys, string(row.Key))
			}
			return nil
		})
		if err != nil {
			t.Fatalf("Scan: %v", err)
		}
		return keys
	}

	t.Run("get, overwrite, delete", func(t *testing.T) {
		db := f.Open(t)
		set(t, db, "a", "1", "b", "2", "a", "3") // the last write of a key wins
		err := db.Update(ctx, func(r store.Reader) (store.Batch, error) {
			v, err := r.Get([]byte("a"))
			if err != nil || string(v) != "3" {
				return store.Batch{}, fmt.Errorf("Get(a) = %q, %v", v, err)
			}
			var b store.Batch
			b.Delete([]byte("a"))
			b.Delete([]byte("never there"))
			return b, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(ctx, func(r store.Reader) error {
			if v, err := r.Get([]byte("a")); !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("a deleted key reads %q, %v", v, err)
			}
			v, err := r.Get([]byte("b"))
			if string(v) != "2" {
				return fmt.Errorf("Get(b) = %q, %v", v, err)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})

	t.Run("a failing function writes nothing", func(t *testing.T) {
		db := f.Open(t)
		err := db.Update(ctx, func(store.Reader) (store.Batch, error) {
			var b store.Batch
			b.Set([]byte("a"), []byte("1"))
			return b, errRefused
		})
		if err != errRefused {
			t.Fatalf("Update = %v, want the function's own error unchanged", err)
		}
		if err := db.View(ctx, func(store.Reader) error { return errRefused }); err != errRefused {
			t.Fatalf("View = %v, want the function's own error unchanged", err)
		}
		if keys := scan(t, db, store.Range{KeysOnly: true}); len(keys) != 0 {
			t.Fatalf("rows %q were written", keys)
		}
	})

	t.Run("scan", func(t *testing.T) {
		db := f.Open(t)
		all := []string{"a", "a\x00", "a\xff", "a\xff\xff", "b", "ba", "c", "\xff", "\xff\xff"}
		for _, k := range all {
			set(t, db, k, "v"+k)
		}
		slices.Sort(all)
		for _, tc := range []struct {
			name string
			rg   store.Range
			want []string
		}{
			{"all", store.Range{}, all},
			{"from", store.Range{From: []byte("b")}, []string{"b", "ba", "c", "\xff", "\xff\xff"}},
			{"to is outside", store.Range{To: []byte("b")}, []string{"a", "a\x00", "a\xff", "a\xff\xff"}},
			{"empty", store.Range{From: []byte("c"), To: []byte("b")}, nil},
			{"prefix", store.Prefix([]byte("a\xff")), []string{"a\xff", "a\xff\xff"}},
			{"prefix of ff", store.Prefix([]byte("\xff")), []string{"\xff", "\xff\xff"}},
			{"between", store.Range{From: []byte("a\x01"), To: []byte("ba")}, []string{"a\xff", "a\xff\xff", "b"}},
		} {
			for _, keysOnly := range []bool{false, true} {
				rg := tc.rg
				rg.KeysOnly = keysOnly
				if got := scan(t, db, rg); !slices.Equal(got, tc.want) {
					t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
				}
				rg.Reverse = true
				want := slices.Clone(tc.want)
				slices.Reverse(want)
				if got := scan(t, db, rg); !slices.Equal(got, want) {
					t.Errorf("%s in reverse: got %q, want %q", tc.name, got, want)
				}
			}
		}
	})

	t.Run("a view does not change", func(t *testing.T) {
		db := f.Open(t)
		set(t, db, "a", "1")
		err := db.View(ctx, func(r store.Reader) error {
			set(t, db, "a", "2", "b", "2")
			if v, err := r.Get([]byte("a")); string(v) != "1" {
				return fmt.Errorf("Get(a) = %q, %v inside an older view", v, err)
			}
			if v, err := r.Get([]byte("b")); !errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("Get(b) = %q, %v inside an older view", v, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})

	t.Run("updates are serializable", func(t *testing.T) {
		db := f.Open(t)
		const writers, each = 8, 25
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for range each {
					err := db.Update(ctx, func(r store.Reader) (store.Batch, error) {
						v, err := r.Get([]byte("count"))
						if err != nil && !errors.Is(err, store.ErrNotFound) {
							return store.Batch{}, err
						}
						var b store.Batch
						b.Set([]byte("count"), append(v, '+'))
						return b, nil
					})
					if err != nil {
						t.Errorf("Update: %v", err)
					}
				}
			})
		}
		wg.Wait()
		db.View(ctx, func(r store.Reader) error {
			if v, _ := r.Get([]byte("count")); len(v) != writers*each {
				t.Errorf("%d increments are left of %d", len(v), writers*each)
			}
			return nil
		})
	})

	t.Run("up to the limits", func(t *testing.T) {
		db := f.Open(t)
		l := db.Limits()
		for name, fill := range map[string]func(b *store.Batch){
			"rows": func(b *store.Batch) {
				for i := range l.BatchRows {
					b.Set(fmt.Appendf(nil, "%d", i), nil)
				}
			},
			"bytes": func(b *store.Batch) {
				for i := range l.BatchBytes/l.ValueBytes - 1 {
					b.Set(fmt.Appendf(nil, "%d", i), make([]byte, l.ValueBytes))
				}
			},
			"key": func(b *store.Batch) { b.Set(bytes.Repeat([]byte("k"), l.KeyBytes), nil) },
		} {
			if err := db.Update(ctx, func(store.Reader) (b store.Batch, err error) { fill(&b); return b, nil }); err != nil {
				t.Errorf("%s up to the limit: %v", name, err)
			}
		}
	})

	t.Run("limits", func(t *testing.T) {
		db := f.Open(t)
		l := db.Limits()
		for name, fill := range map[string]func(b *store.Batch){
			"value":  func(b *store.Batch) { b.Set([]byte("k"), make([]byte, l.ValueBytes+1)) },
			"key":    func(b *store.Batch) { b.Set(make([]byte, l.KeyBytes+1), nil) },
			"no key": func(b *store.Batch) { b.Set(nil, []byte("v")) },
			"rows": func(b *store.Batch) {
				for i := range l.BatchRows + 1 {
					b.Set(fmt.Appendf(nil, "%d", i), nil)
				}
			},
			"bytes": func(b *store.Batch) {
				for i := range l.BatchBytes/l.ValueBytes + 1 {
					b.Set(fmt.Appendf(nil, "%d", i), make([]byte, l.ValueBytes))
				}
			},
		} {
			err := db.Update(ctx, func(store.Reader) (store.Batch, error) {
				var b store.Batch
				b.Set([]byte("first"), nil)
				fill(&b)
				return b, nil
			})
			if !errors.Is(err, store.ErrTooLarge) {
				t.Errorf("%s over the limit: %v, want ErrTooLarge", name, err)
			}
		}
		if keys := scan(t, db, store.Range{KeysOnly: true}); len(keys) != 0 {
			t.Errorf("rows were written by refused updates: %q", keys)
		}
		set(t, db, "as large as may be", strings.Repeat("x", l.ValueBytes))
	})

	t.Run("a cancelled context", func(t *testing.T) {
		db := f.Open(t)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		err := db.Update(gone, func(store.Reader) (store.Batch, error) {
			var b store.Batch
			b.Set([]byte("a"), nil)
			return b, nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Update = %v", err)
		}
		if err := db.View(gone, func(store.Reader) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("View = %v", err)
		}
		set(t, db, "still usable", "yes")
	})

	t.Run("what was acknowledged is there after a restart", func(t *testing.T) {
		db := f.Open(t)
		for i := range 100 {
			set(t, db, fmt.Sprintf("k%03d", i), strings.Repeat("v", i))
		}
		db = f.Reopen(t, db)
		if n := len(scan(t, db, store.Range{})); n != 100 {
			t.Errorf("%d of 100 rows are left", n)
		}
	})

	t.Run("it behaves as a map", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			db := f.Open(t)
			defer db.Close()
			model := map[string]string{}
			key := rapid.StringMatching(`[ab\x00]{1,3}`)
			for range rapid.IntRange(1, 6).Draw(rt, "updates") {
				next := maps.Clone(model)
				var b store.Batch
				for range rapid.IntRange(0, 6).Draw(rt, "writes") {
					k := key.Draw(rt, "key")
					if rapid.Bool().Draw(rt, "delete") {
						b.Delete([]byte(k))
						delete(next, k)
					} else {
						v := rapid.String().Draw(rt, "value")
						b.Set([]byte(k), []byte(v))
						next[k] = v
					}
				}
				refuse := rapid.Bool().Draw(rt, "refuse")
				err := db.Update(ctx, func(store.Reader) (store.Batch, error) {
					if refuse {
						return b, errRefused
					}
					return b, nil
				})
				if refuse != (err != nil) {
					rt.Fatalf("Update: %v", err)
				}
				if !refuse {
					model = next
				}
				got := map[string]string{}
				db.View(ctx, func(r store.Reader) error {
					for row, err := range r.Scan(store.Range{}) {
						if err != nil {
							return err
						}
						got[string(row.Key)] = string(row.Value)
					}
					return nil
				})
				if !maps.Equal(got, model) {
					rt.Fatalf("got %q, want %q", got, model)
				}
			}
		})
	})
}

// A BlobsFactory opens blobs for TestBlobs.
type BlobsFactory struct {
	// Open returns empty Blobs.
	Open func(t testing.TB) store.Blobs

	// Crash returns what a new process would find of b.
	Crash func(t testing.TB, b store.Blobs) store.Blobs
}

// TestBlobs checks the contract of [store.Blobs].
func TestBlobs(t *testing.T, f BlobsFactory) {
	ctx := t.Context()
	must := func(t testing.TB, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	create := func(t testing.TB, b store.Blobs, data string) store.BlobWriter {
		t.Helper()
		w, err := b.Create(ctx, int64(len(data)))
		must(t, err)
		_, err = io.WriteString(w, data)
		must(t, err)
		return w
	}
	read := func(t testing.TB, b store.Blobs, key store.Key) string {
		t.Helper()
		r, err := b.Open(ctx, key)
		must(t, err)
		defer r.Close()
		data, err := io.ReadAll(r)
		must(t, err)
		if r.Size() != int64(len(data)) {
			t.Fatalf("Size is %d and %d bytes were read", r.Size(), len(data))
		}
		return string(data)
	}

	t.Run("write, commit, read", func(t *testing.T) {
		b := f.Open(t)
		for _, data := range []string{"", "x", strings.Repeat("abc", 1<<20)} {
			w := create(t, b, data)
			if _, err := b.Open(ctx, w.Key()); !errors.Is(err, store.ErrNotFound) {
				t.Fatalf("Open before Commit: %v, want ErrNotFound", err)
			}
			must(t, w.Commit())
			must(t, w.Close())
			if got := read(t, b, w.Key()); got != data {
				t.Fatalf("read %d bytes, want %d", len(got), len(data))
			}
			if _, err := b.Resume(ctx, w.Key()); !errors.Is(err, store.ErrExists) {
				t.Fatalf("Resume after Commit: %v, want ErrExists", err)
			}
		}
	})
	t.Run("a size that was announced wrong", func(t *testing.T) {
		b := f.Open(t)
		for _, announced := range []int64{-1, 1, 1 << 20} {
			w, err := b.Create(ctx, announced)
			must(t, err)
			io.WriteString(w, "hello")
			must(t, w.Commit())
			if got := read(t, b, w.Key()); got != "hello" {
				t.Errorf("announced %d: read %q", announced, got)
			}
		}
	})
	t.Run("seek and read at", func(t *testing.T) {
		b := f.Open(t)
		w := create(t, b, "0123456789")
		p := make([]byte, 3)
		if _, err := w.ReadAt(p, 4); err != nil || string(p) != "456" {
			t.Errorf("ReadAt of the writer = %q, %v", p, err)
		}
		must(t, w.Commit())
		r, err := b.Open(ctx, w.Key())
		must(t, err)
		defer r.Close()
		r.Seek(7, io.SeekStart)
		if rest, _ := io.ReadAll(r); string(rest) != "789" {
			t.Errorf("read %q after Seek", rest)
		}
		if _, err := r.ReadAt(p, 1); err != nil || string(p) != "123" {
			t.Errorf("ReadAt = %q, %v", p, err)
		}
	})
	t.Run("resume and truncate", func(t *testing.T) {
		b := f.Open(t)
		w := create(t, b, "0123456789")
		if _, err := b.Resume(ctx, w.Key()); err == nil {
			t.Error("a second writer was given while the first is open")
		}
		must(t, w.Sync())
		must(t, w.Close())
		w, err := b.Resume(ctx, w.Key())
		must(t, err)
		if w.Size() != 10 {
			t.Fatalf("resumed at %d, want 10", w.Size())
		}
		must(t, w.Truncate(4))
		if err := w.Truncate(5); err == nil {
			t.Error("Truncate beyond the end succeeded")
		}
		io.WriteString(w, "abc")
		must(t, w.Commit())
		if got := read(t, b, w.Key()); got != "0123abc" {
			t.Errorf("read %q", got)
		}
		if _, err := b.Resume(ctx, store.NewKey()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Resume of nothing: %v", err)
		}
	})
	t.Run("remove", func(t *testing.T) {
		b := f.Open(t)
		w := create(t, b, "still read")
		must(t, w.Commit())
		r, err := b.Open(ctx, w.Key())
		must(t, err)
		defer r.Close()
		must(t, b.Remove(ctx, w.Key()))
		must(t, b.Remove(ctx, w.Key()))
		if data, err := io.ReadAll(r); err != nil || string(data) != "still read" {
			t.Errorf("an open blob read %q, %v after it was removed", data, err)
		}
		if _, err := b.Open(ctx, w.Key()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Open after Remove: %v", err)
		}
	})
	t.Run("list", func(t *testing.T) {
		b := f.Open(t)
		done, open := create(t, b, "done"), create(t, b, "not yet")
		must(t, done.Commit())
		must(t, open.Sync())
		got := map[store.Key]string{}
		for info, err := range b.List(ctx) {
			must(t, err)
			got[info.Key] = fmt.Sprint(info.Size, info.Committed)
		}
		want := map[store.Key]string{done.Key(): "4 true", open.Key(): "7 false"}
		if !maps.Equal(got, want) {
			t.Errorf("List gave %v, want %v", got, want)
		}
	})
	t.Run("what is durable survives", func(t *testing.T) {
		b := f.Open(t)
		done, synced, lost := create(t, b, "done"), create(t, b, "synced"), create(t, b, "perhaps")
		must(t, done.Commit())
		must(t, synced.Sync())
		io.WriteString(synced, "+more")
		b = f.Crash(t, b)
		if got := read(t, b, done.Key()); got != "done" {
			t.Errorf("a committed blob reads %q after a crash", got)
		}
		w, err := b.Resume(ctx, synced.Key())
		must(t, err)
		p := make([]byte, 6)
		if w.Size() < 6 {
			t.Fatalf("%d bytes are left of 6 that were synced", w.Size())
		}
		if _, err := w.ReadAt(p, 0); err != nil || !bytes.Equal(p, []byte("synced")) {
			t.Errorf("synced bytes read %q, %v", p, err)
		}
		if _, err := b.Open(ctx, lost.Key()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("a blob that was never committed opens: %v", err)
		}
	})
	t.Run("keys of others", func(t *testing.T) {
		b := f.Open(t)
		for _, k := range []store.Key{"", "..", "../../etc/passwd", "0", store.Key(strings.Repeat("g", 32))} {
			if _, err := b.Open(ctx, k); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("Open(%q) = %v, want ErrNotFound", k, err)
			}
			if err := b.Remove(ctx, k); err != nil {
				t.Errorf("Remove(%q) = %v", k, err)
			}
		}
	})
}
