package access

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/bcrypt"
)

// Users are the names and password hashes of an htpasswd file.
type Users struct {
	hashes map[string][]byte
}

// ParseUsers reads an htpasswd file: a line "name:hash" for each user, with
// hashes by bcrypt, which 'htpasswd -B' and 'assay access passwd' write.
func ParseUsers(file []byte) (*Users, error) {
	u := &Users{hashes: map[string][]byte{}}
	for i, line := range bytes.Split(file, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(string(line), ":")
		if err := CheckUser(name); err != nil || !ok {
			return nil, fmt.Errorf("line %d: write NAME:HASH", i+1)
		}
		if _, err := bcrypt.Cost([]byte(hash)); err != nil {
			return nil, fmt.Errorf("line %d: the hash of %s is not by bcrypt; make it with 'htpasswd -B' or 'assay access passwd'", i+1, name)
		}
		if u.hashes[name] != nil {
			return nil, fmt.Errorf("line %d: %s is there twice", i+1, name)
		}
		u.hashes[name] = []byte(hash)
	}
	return u, nil
}

// CheckUser returns an error unless a name can stand in an htpasswd file.
func CheckUser(name string) error {
	if name == "" || len(name) > 200 || strings.ContainsAny(name, ": \t\r\n#*") {
		return fmt.Errorf("%q is no user name: use up to 200 characters without spaces, colons, # and *", name)
	}
	return nil
}

// HashPassword makes the line of a user.
func HashPassword(name, password string) (string, error) {
	if err := CheckUser(name); err != nil {
		return "", err
	}
	if len(password) < 8 || len(password) > 72 {
		return "", errors.New("a password has 8 to 72 bytes")
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
	if err != nil {
		return "", err
	}
	return name + ":" + string(hash), nil
}

func (u *Users) hash(name string) ([]byte, bool) {
	h, ok := u.hashes[name]
	return h, ok
}

// Names are the users there are.
func (u *Users) Names() (names []string) {
	for n := range u.hashes {
		names = append(names, n)
	}
	return names
}

// Rules say what users may do: what no rule grants is denied.
//
//	version: 1
//	grants:
//	- users: [alice, ci]
//	  role: pusher
//	  repositories: [credit/**, "env/*"]
//	- users: ["*"]            # whoever has logged in
//	  role: reader
//	  repositories: ["**"]
type Rules struct {
	grants map[string][]Grant
}

// everyone stands for all users in a rule.
const everyone = "*"

// ParseRules reads an access file, strictly.
func ParseRules(file []byte) (*Rules, error) {
	var f struct {
		Version int `yaml:"version"`
		Grants  []struct {
			Users        []string `yaml:"users"`
			Role         Role     `yaml:"role"`
			Repositories []string `yaml:"repositories"`
		} `yaml:"grants"`
	}
	d := yaml.NewDecoder(bytes.NewReader(file))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		return nil, err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document in it")
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("version is %d; only 1 is known", f.Version)
	}
	r := &Rules{grants: map[string][]Grant{}}
	for i, g := range f.Grants {
		if len(g.Users) == 0 || len(g.Repositories) == 0 {
			return nil, fmt.Errorf("grant %d: it names no users or no repositories", i+1)
		}
		for _, user := range g.Users {
			if user != everyone {
				if err := CheckUser(user); err != nil {
					return nil, fmt.Errorf("grant %d: %w", i+1, err)
				}
			}
			for _, pattern := range g.Repositories {
				grant := Grant{g.Role, pattern}
				if err := grant.Check(); err != nil {
					return nil, fmt.Errorf("grant %d: %w", i+1, err)
				}
				r.grants[user] = append(r.grants[user], grant)
			}
		}
	}
	return r, nil
}

// Grants are what a user has.
func (r *Rules) Grants(user string) []Grant {
	return append(append([]Grant(nil), r.grants[user]...), r.grants[everyone]...)
}
