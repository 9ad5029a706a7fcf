package fingerprint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// numeric are the libraries that can change an answer.
var numeric = regexp.MustCompile(`^lib(openblas|blas|cblas|lapack|blis|mkl_|dnnl|mkldnn|onnxruntime|torch|c10|tensorflow|openvino|tvm|mlx|` +
	`cublas|cudnn|cudart|cufft|cusparse|cusolver|nvinfer|nccl|rocblas|hipblas|hipfft|rocsolver|MIOpen|amdhip|rccl|` +
	`ggml|llama|gomp|iomp|omp\.|tbb|sleef|svml|m\.so|mvec|acl|arm_compute|nvpl_)[^/]*\.so`)

// isCLibrary tells the C library, by any of its names.
func isCLibrary(base string) bool {
	return base == "libc.so.6" || strings.HasPrefix(base, "libc-2.") || strings.HasPrefix(base, "ld-musl-") || strings.HasPrefix(base, "libc.musl-")
}

// libraries names the C library and the numeric ones: those that the serving
// process has mapped, if it is known, else those that the loader would find.
// The latter need not be used, and a Python wheel brings its own, which the
// loader's cache does not know: so the two have different names.
func libraries(_ context.Context, m *Machine, f Fields) {
	group, root := "library.installed.", ""
	var paths []string
	var err error
	if m.PID != 0 {
		// What the process has mapped is named as it sees the files.
		group, root = "library.loaded.", m.process("root")
		var raw []byte
		if raw, err = m.read(m.process("maps")); err == nil {
			paths = mapped(raw)
		}
	} else {
		var raw []byte
		if raw, err = m.read("etc/ld.so.cache"); err == nil {
			paths, err = loaderCache(raw, m.Arch)
		}
	}
	libc, found := "", false
	names := map[string][]string{}
	for _, p := range paths {
		base := path.Base(p)
		switch {
		case isCLibrary(base):
			if libc == "" {
				libc = path.Join(root, p)
			}
		case numeric.MatchString(base):
			found = true
			identity, err := m.library(path.Join(root, p))
			if err != nil {
				f.missing(group+base, err.Error())
				continue
			}
			names[base] = append(names[base], identity)
		}
	}
	for base, list := range names {
		slices.Sort(list)
		f.observed(group+base, strings.Join(slices.Compact(list), "; "), "")
	}
	if !found {
		f.missing(strings.TrimSuffix(group, "."), reason(err, "no numeric library is among the libraries that are known"))
	}
	if libc == "" {
		for _, dir := range []string{"lib/" + m.Arch + "-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"} {
			if p := path.Join(root, dir, "libc.so.6"); m.exists(p) {
				libc = p
				break
			}
		}
	}
	if libc == "" {
		f.missing("libc", "no C library was found")
		return
	}
	version, err := m.libc(libc)
	f.observed("libc", version, reason(err, "its file does not name a version"))
}

// "GNU C Library (Debian GLIBC 2.36-9+deb12u10) stable release version 2.36."
var glibcBanner = regexp.MustCompile(`GNU C Library \(([^()\n]{1,80})\)[^\n\x00]{0,40}release version ([0-9.]+)\.`)

func (m *Machine) libc(name string) (string, error) {
	raw, err := m.read(name)
	if err != nil {
		return "", err
	}
	if b := glibcBanner.FindSubmatch(raw); b != nil {
		return fmt.Sprintf("glibc %s (%s)", b[2], b[1]), nil
	}
	identity, err := m.library(name)
	return path.Base(name) + " " + identity, err
}

// library identifies a library by the name of the file that links lead to,
// where its version often is, and by its build id or, if it has none, by its
// digest.
func (m *Machine) library(name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	file, err := m.Root.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	base := m.linked(name)
	if at, ok := file.(io.ReaderAt); ok {
		if id := buildID(at); id != "" {
			return base + " build-id " + id, nil
		}
	}
	// Once more from the beginning: the file may have been read at places.
	if s, ok := file.(io.Seeker); ok {
		if _, err := s.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
	}
	h := sha256.New()
	const most = 256 << 20
	n, err := io.Copy(h, io.LimitReader(file, most+1))
	if err != nil {
		return "", fmt.Errorf("reading /%s: %w", name, err)
	}
	if n > most {
		return "", fmt.Errorf("/%s has no build id and is larger than %d bytes", name, most)
	}
	return fmt.Sprintf("%s sha256:%x", base, h.Sum(nil)), nil
}

// linked is the base name of the file that a name leads to.
func (m *Machine) linked(name string) string {
	for range 8 {
		to, err := fs.ReadLink(m.Root, name)
		if err != nil {
			break
		}
		if path.IsAbs(to) {
			// In a container it means the container's root.
			if root := m.process("root"); strings.HasPrefix(name, root+"/") {
				to = path.Join(root, to)
			}
			name = strings.TrimPrefix(to, "/")
		} else {
			name = path.Join(path.Dir(name), to)
		}
	}
	return path.Base(name)
}

// buildID returns NT_GNU_BUILD_ID of an ELF file as hexadecimal digits, or "".
func buildID(r io.ReaderAt) string {
	f, err := elf.NewFile(r)
	if err != nil {
		return ""
	}
	s := f.Section(".note.gnu.build-id")
	if s == nil || s.Size > 1<<10 {
		return ""
	}
	note, err := s.Data()
	// namesz, descsz, type; "GNU\0"; the id.
	if err != nil || len(note) < 16 || string(note[12:16]) != "GNU\x00" || f.ByteOrder.Uint32(note[8:]) != 3 {
		return ""
	}
	n := f.ByteOrder.Uint32(note[4:])
	if n == 0 || int64(n) > int64(len(note)-16) {
		return ""
	}
	return fmt.Sprintf("%x", note[16:16+n])
}

// mapped returns the files in /proc/PID/maps, in order, each once.
func mapped(maps []byte) (paths []string) {
	seen := map[string]bool{}
	for line := range strings.Lines(string(maps)) {
		// address perms offset dev inode pathname; the name may have spaces.
		fields := strings.Fields(line)
		if len(fields) < 6 || !strings.HasPrefix(fields[5], "/") {
			continue
		}
		p := strings.TrimSpace(line[strings.Index(line, fields[5]):])
		p = strings.TrimSuffix(p, " (deleted)")
		if !seen[p] {
			seen[p] = true
			paths = append(paths, p)
		}
	}
	return paths
}

// loaderCache returns the files in an ld.so.cache. The format is that of
// glibc 2.2 and later (sysdeps/generic/dl-cache.h, "struct cache_file_new"),
// alone or behind the old one. Libraries for another architecture are left
// out, as far as the flags tell.
func loaderCache(raw []byte, arch string) (paths []string, err error) {
	const magic = "glibc-ld.so.cache1.1"
	i := bytes.Index(raw, []byte(magic))
	if i < 0 {
		return nil, errors.New("/etc/ld.so.cache is not in a format that is known")
	}
	raw = raw[i:] // offsets count from here
	const head, entry = 48, 24
	if len(raw) < head {
		return nil, errors.New("/etc/ld.so.cache is truncated")
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if raw[28]&3 == 3 { // cache_file_new_flags_endian_big
		order = binary.BigEndian
	}
	n := order.Uint32(raw[20:])
	if int64(n) > int64(len(raw)-head)/entry {
		return nil, errors.New("/etc/ld.so.cache is truncated")
	}
	text := func(offset uint32) (string, bool) {
		if int64(offset) >= int64(len(raw)) {
			return "", false
		}
		end := bytes.IndexByte(raw[offset:], 0)
		if end < 0 || end > 4096 {
			return "", false
		}
		return string(raw[int(offset) : int(offset)+end]), true
	}
	// FLAG_X8664_LIB64 and FLAG_AARCH64_LIB64; 0 stands for any.
	want := map[string]uint32{"x86_64": 0x0300, "aarch64": 0x0a00}[arch]
	for k := range int(n) {
		e := raw[head+k*entry:]
		if flags := order.Uint32(e) & 0xff00; want != 0 && flags != want {
			continue
		}
		p, ok := text(order.Uint32(e[8:]))
		if !ok {
			return nil, fmt.Errorf("/etc/ld.so.cache: entry %d points outside", k)
		}
		paths = append(paths, p)
	}
	return paths, nil
}
