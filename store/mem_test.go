package store_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/storetest"
)

func TestMemDB(t *testing.T) {
	storetest.TestDB(t, storetest.DBFactory{
		Open:   func(testing.TB) store.DB { return store.NewMemDB() },
		Reopen: func(_ testing.TB, db store.DB) store.DB { return db.(*store.MemDB).Reopen() },
	})
}

func TestMemBlobs(t *testing.T) {
	storetest.TestBlobs(t, storetest.BlobsFactory{
		Open:  func(testing.TB) store.Blobs { return store.NewMemBlobs() },
		Crash: func(_ testing.TB, b store.Blobs) store.Blobs { return b.(*store.MemBlobs).Crash() },
	})
}

// The fake is worth something only if it refuses what the contract forbids.
func TestMemDBPolices(t *testing.T) {
	ctx := t.Context()
	put := func(r store.Reader) (b store.Batch, err error) {
		b.Set([]byte("k"), []byte("v"))
		return b, nil
	}
	t.Run("impure functions", func(t *testing.T) {
		db := store.NewMemDB()
		n := byte(0)
		err := db.Update(ctx, func(store.Reader) (b store.Batch, err error) {
			n++
			b.Set([]byte("k"), []byte{n})
			return b, nil
		})
		if err == nil || len(db.Rows()) != 0 {
			t.Errorf("err %v, rows %q", err, db.Rows())
		}
	})
	t.Run("readers kept", func(t *testing.T) {
		db := store.NewMemDB()
		var kept store.Reader
		db.View(ctx, func(r store.Reader) error { kept = r; return nil })
		if _, err := kept.Get([]byte("k")); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get with a Reader of a View that is over: %v", err)
		}
	})
	for _, tc := range []struct {
		fault  store.Fault
		rows   int
		usable bool
	}{{store.FailLost, 0, false}, {store.FailPersist, 1, false}, {store.FailNoSpace, 0, true}} {
		db := store.NewMemDB()
		db.Inject(tc.fault)
		if err := db.Update(ctx, put); err == nil {
			t.Errorf("fault %d: no error", tc.fault)
		}
		err := db.View(ctx, func(store.Reader) error { return nil })
		if usable := err == nil; usable != tc.usable || !usable && !errors.Is(err, store.ErrPoisoned) {
			t.Errorf("fault %d: View = %v afterwards", tc.fault, err)
		}
		if rows := db.Reopen().Rows(); len(rows) != tc.rows {
			t.Errorf("fault %d: %d rows after a restart, want %d", tc.fault, len(rows), tc.rows)
		}
	}
}

// The cellar stands on nothing of ours, and adapters know only its contracts.
func TestArrows(t *testing.T) {
	for pkg, allowed := range map[string]bool{".": false, "./badger": true, "./fs": true, "./storetest": true} {
		out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range strings.Fields(string(out)) {
			if strings.HasPrefix(p, "github.com/assay-dev/") && !(allowed && p == "github.com/assay-dev/assay/store") {
				t.Errorf("%s imports %s: an engine knows rows and bytes, and nothing of models", pkg, p)
			}
		}
	}
}
