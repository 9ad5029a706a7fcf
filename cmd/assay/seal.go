package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/assay-dev/assay/conformance"
)

// sealedFile is the file in the folder of a sealed part.
const sealedFile = "sealed.jsonl"

const (
	sealUsage   = "put the sealed part, the cases that are marked so, into this folder: it is not pushed, and must not be lost"
	sealedUsage = "the folder with the sealed part of the suite, if it has one"
)

// toSeal are the ids of the cases that are marked to be sealed.
func toSeal(cases []conformance.Candidate) map[string]bool {
	which := map[string]bool{}
	for _, c := range cases {
		if c.Sealed {
			which[c.ID] = true
		}
	}
	return which
}

// sealable checks, before anything is asked, that cases that are to be sealed
// have a place to go to.
func sealable(cases []conformance.Candidate, folder string) error {
	n := len(toSeal(cases))
	switch {
	case n > 0 && folder == "":
		return usagef("%d cases are marked to be sealed: name the folder for them with --seal", n)
	case n == 0 && folder != "":
		return usagef("--seal %s: no case is marked to be sealed (assay suite add --sealed)", folder)
	case folder == "":
		return nil
	}
	if _, err := os.Stat(filepath.Join(folder, sealedFile)); !errors.Is(err, fs.ErrNotExist) {
		return usagef("--seal %s: there is a sealed part in it already", folder)
	}
	return nil
}

// seal writes the sealed part of a suite, before any of the suite is pushed.
func seal(s *conformance.Suite, cases []conformance.Candidate, folder string) error {
	if folder == "" {
		return nil
	}
	part, err := s.Seal(toSeal(cases), rand.Reader)
	if err != nil {
		return remedy(err, "more of the cases have to be marked, or all: those of the suite are drawn")
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(folder, sealedFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(part)
	return errors.Join(err, f.Sync(), f.Close())
}

// openSealed opens the sealed part of a suite that was fetched.
func openSealed(s *conformance.Suite, folder string) error {
	switch {
	case folder == "" && s.Closed() == 0:
		return nil
	case folder == "":
		return remedy(fmt.Errorf("%d of %d cases of the suite are sealed", s.Closed(), len(s.Cases)), "name the folder with the sealed part: --sealed FOLDER")
	}
	part, err := os.ReadFile(filepath.Join(folder, sealedFile))
	if err != nil {
		return remedy(err, "name the folder with the sealed part: --sealed FOLDER")
	}
	if err := s.Open(part); err != nil {
		return remedy(fmt.Errorf("%s: %w", folder, err), "it has to be the folder that was written when this suite was sealed")
	}
	return nil
}
