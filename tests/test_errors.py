from pvt_det import errors


def test_errors_have_documented_exit_codes():
    codes = {error.__name__: error.exit_code for error in errors.PvtDetError.__subclasses__()}
    expected = {"ConfigError": 2, "DataError": 3, "CheckpointError": 4, "NumericError": 5, "RankError": 6}
    assert codes == expected | {"Interrupted": 75}
