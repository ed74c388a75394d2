package imprint_test

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"imprint"
)

// A copy that shared memory with its original would let a decision that came to
// nothing change what a server remembers.
func TestCloneSharesNothing(t *testing.T) {
	var i imprint.Instance
	fill(t, reflect.ValueOf(&i).Elem())
	c := i.Clone()
	if !reflect.DeepEqual(&i, c) {
		t.Fatalf("the copy is\n%+v, not\n%+v", c, i)
	}
	shared(t, "Instance", reflect.ValueOf(i), reflect.ValueOf(*c))
}

// fill sets everything in v, down to one element of every slice and map.
func fill(t *testing.T, v reflect.Value) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1, 0).UTC()))
		return
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("192.0.2.1")))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.MustParsePrefix("192.0.2.0/24")))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key)
		fill(t, value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for n := range v.NumField() {
			fill(t, v.Field(n))
		}
	default:
		t.Fatalf("this test does not know how to fill a %s", v.Type())
	}
}

// shared fails the test for every slice, map and pointer that a and b share.
func shared(t *testing.T, path string, a, b reflect.Value) {
	switch a.Interface().(type) {
	case time.Time, netip.Addr, netip.Prefix: // never changed in place
		return
	}
	switch a.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if a.Pointer() == b.Pointer() {
			t.Errorf("%s is shared", path)
			return
		}
	}
	switch a.Kind() {
	case reflect.Pointer:
		shared(t, path, a.Elem(), b.Elem())
	case reflect.Slice:
		shared(t, path+"[0]", a.Index(0), b.Index(0))
	case reflect.Map:
		key := a.MapKeys()[0]
		shared(t, path+"[x]", a.MapIndex(key), b.MapIndex(key))
	case reflect.Struct:
		for n := range a.NumField() {
			shared(t, path+"."+a.Type().Field(n).Name, a.Field(n), b.Field(n))
		}
	}
}
