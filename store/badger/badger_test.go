package badger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("ASSAY_TEST_WRITE_TO"); dir != "" {
		writeUntilKilled(dir)
	}
	os.Exit(m.Run())
}

func open(t testing.TB, dir string, opt Options) *DB {
	t.Helper()
	db, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestDB(t *testing.T) {
	storetest.TestDB(t, storetest.DBFactory{
		Open: func(t testing.TB) store.DB { return open(t, t.TempDir(), Options{}) },
		Reopen: func(t testing.TB, db store.DB) store.DB {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, db.(*DB).dir, Options{})
		},
	})
}

func put(db *DB, key, value string) error {
	return db.Update(context.Background(), func(store.Reader) (b store.Batch, err error) {
		b.Set([]byte(key), []byte(value))
		return b, nil
	})
}

func rows(t testing.TB, db *DB) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := db.View(t.Context(), func(r store.Reader) error {
		for row, err := range r.Scan(store.Range{}) {
			if err != nil {
				return err
			}
			m[string(row.Key)] = string(row.Value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{})
	if _, err := Open(dir, Options{}); err == nil {
		t.Fatal("two processes have the database open")
	}
}

func TestNoSpace(t *testing.T) {
	free := int64(1 << 40)
	db := open(t, t.TempDir(), Options{Space: store.NewSpaceFunc(1<<20, func() (int64, error) { return free, nil })})
	if err := put(db, "a", "1"); err != nil {
		t.Fatal(err)
	}
	free = 2 << 20
	if err := put(db, "b", "2"); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("Update on a full disk: %v", err)
	}
	if got := rows(t, db); len(got) != 1 {
		t.Fatalf("rows %q", got)
	}
	free = 1 << 40
	if err := put(db, "b", "2"); err != nil {
		t.Fatalf("Update when there is space again: %v", err)
	}
}

// writeUntilKilled is the child of TestKill: it says which rows were
// acknowledged, on standard output, which the kill cannot take back.
func writeUntilKilled(dir string) {
	db, err := Open(dir, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		if err := put(db, fmt.Sprintf("%06d", i), fmt.Sprint(rand.Int())); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	next := 0
	for round := range 4 {
		sub := filepath.Join(dir, fmt.Sprint(round))
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "ASSAY_TEST_WRITE_TO="+sub)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fmt.Sscan(lines.Text(), &next)
			if next == 20+rand.IntN(100) || next > 150 {
				break
			}
		}
		cmd.Process.Kill()
		for lines.Scan() { // what it still said before it died
			fmt.Sscan(lines.Text(), &next)
		}
		cmd.Wait()
		if next == 0 {
			t.Fatal("the child wrote nothing")
		}
		db := open(t, sub, Options{})
		got := rows(t, db)
		for i := range next + 1 {
			if got[fmt.Sprintf("%06d", i)] == "" {
				t.Errorf("round %d: row %d was acknowledged and is gone", round, i)
			}
		}
		db.Close()
	}
}

// Change one byte of any file of the database: opening, checking or reading
// says so, or nothing that is stored has changed.
func TestFlippedByte(t *testing.T) {
	dir := t.TempDir()
	db := open(t, filepath.Join(dir, "db"), Options{})
	for i := range 200 {
		if err := put(db, fmt.Sprintf("key-%04d", i), fmt.Sprintf("value-%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	want := rows(t, db)
	db.Close() // flushes the memtable into a table
	if err := os.Remove(filepath.Join(dir, "db", "LOCK")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "db", "*.sst"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	noticed, inert := 0, 0
	for _, file := range files {
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(whole); at += 1 + len(whole)/40 {
			copyDir := filepath.Join(dir, "copy")
			os.RemoveAll(copyDir)
			if err := os.CopyFS(copyDir, os.DirFS(filepath.Join(dir, "db"))); err != nil {
				t.Fatal(err)
			}
			bad := append([]byte(nil), whole...)
			bad[at] ^= 0x10
			if err := os.WriteFile(filepath.Join(copyDir, filepath.Base(file)), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if flipNoticed(t, copyDir, want) {
				noticed++
			} else {
				inert++
			}
		}
	}
	if noticed == 0 {
		t.Errorf("no changed byte was noticed (%d were inert)", inert)
	}
	t.Logf("%d changed bytes were noticed, %d changed nothing that is stored", noticed, inert)
}

// flipNoticed fails the test if the database reads differently and nobody
// said that it is damaged.
func flipNoticed(t *testing.T, dir string, want map[string]string) (noticed bool) {
	defer func() {
		if r := recover(); r != nil {
			noticed = true // Badger panics on some damage; loud is what counts
		}
	}()
	db, err := Open(dir, Options{})
	if err != nil {
		return true
	}
	defer db.Close()
	if err := db.Verify(t.Context()); err != nil {
		return true
	}
	got := map[string]string{}
	err = db.View(t.Context(), func(r store.Reader) error {
		for row, err := range r.Scan(store.Range{}) {
			if err != nil {
				return err
			}
			got[string(row.Key)] = string(row.Value)
		}
		return nil
	})
	if err != nil {
		return true
	}
	if !maps.Equal(got, want) {
		t.Errorf("a changed byte changed what is stored, and nobody noticed")
	}
	return false
}

func BenchmarkUpdate(b *testing.B) {
	db := open(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		if err := put(db, fmt.Sprint(i), "value"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSync is the limit of BenchmarkUpdate: one small synced write.
func BenchmarkSync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for b.Loop() {
		f.WriteString("value")
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// A kill between the cut and the removal of a log leaves an empty file, which
// Badger by itself does not open.
func TestEmptyLogs(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir, Options{})
	if err := put(db, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"00007.mem", "000009.vlog"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if bare, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil)); err == nil {
			bare.Close()
			t.Errorf("Badger opens a database with an empty %s: removing it is no longer needed", name)
		}
		db = open(t, dir, Options{})
		if got := rows(t, db); got["k"] != "v" {
			t.Errorf("with an empty %s: %v", name, got)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A small disk gets small memtables, and the contract holds there too.
func TestSmallDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=300m"); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	storetest.TestDB(t, storetest.DBFactory{
		Open: func(t testing.TB) store.DB {
			sub, err := os.MkdirTemp(dir, "")
			if err != nil {
				t.Fatal(err)
			}
			db := open(t, sub, Options{})
			if db.memTable != minMemTable {
				t.Errorf("memtables of %d bytes", db.memTable)
			}
			t.Cleanup(func() { db.Close(); os.RemoveAll(sub) })
			return db
		},
		Reopen: func(t testing.TB, db store.DB) store.DB {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, db.(*DB).dir, Options{})
		},
	})
}
