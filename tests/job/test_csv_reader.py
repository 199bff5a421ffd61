def test_a_csv_file_whose_header_is_no_utf8_is_read(read_as):
    assert len(read_as("größe,text\n1,a\n2,b\n".encode("latin-1"), "csv")) == 2


def test_csv_values_stay_text(read_as):
    assert read_as(b"text,n,\np,007,x\n", "csv") == [(0, {"text": "p", "n": "007", "column_3": "x"})]
